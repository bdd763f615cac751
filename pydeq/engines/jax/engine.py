"""The JAX engine: what it has, and the session that its devices call for."""

from typing import final

from pydeq.engines.base import AbstractEngine, AbstractSession, check_supported
from pydeq.engines.jax.device import find_devices
from pydeq.engines.jax.parallel import ParallelSession
from pydeq.engines.jax.session import JaxSession
from pydeq.model import (
    SOLVERS,
    STABILITIES,
    ModelSpec,
    OptimizerSpec,
    Params,
    SolverSpec,
    check_params,
)

__all__ = ["JaxEngine"]


@final
class JaxEngine(AbstractEngine):
    """Solve and train with JAX, on this process's devices or, together, on those of several."""

    name = "jax"
    solvers = SOLVERS
    stabilities = STABILITIES
    unrolls = tuple(name for name in SOLVERS if name != "newton")

    def __init__(self, device: str = "auto") -> None:
        self.devices = find_devices(device)

    def open(
        self,
        model: ModelSpec,
        solver: SolverSpec,
        optimizer: OptimizerSpec,
        params: Params,
        optimizer_state: Params | None = None,
    ) -> AbstractSession:
        """See :meth:`AbstractEngine.open`."""
        check_supported(type(self), model, solver)
        check_params(model, params)
        specs = model, solver, optimizer, params, optimizer_state
        if len(self.devices) == 1:
            return JaxSession(self.devices[0], *specs)
        return ParallelSession(self.devices, *specs)
