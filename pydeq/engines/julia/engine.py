"""The Julia engine's side of the contract: what it has, where it works, what it loads for it."""

import logging
from collections.abc import Iterator
from typing import final

from pydeq.cell_function import CellFunction
from pydeq.engines.base import AbstractEngine, check_supported
from pydeq.engines.julia import runtime
from pydeq.engines.julia.cells import PACKAGES
from pydeq.engines.julia.session import JuliaSession
from pydeq.errors import EngineError, EngineUnavailableError
from pydeq.model import (
    ODE_METHODS,
    SOLVERS,
    STABILITIES,
    ModelSpec,
    OptimizerSpec,
    Params,
    SolverSpec,
    check_params,
)

__all__ = ["JuliaEngine", "missing_on_gpu"]

METHODS = tuple(
    f"OrdinaryDiffEq{kind}"
    for kind in ("AdamsBashforthMoulton", "LowOrderRK", "StabilizedRK", "Tsit5")
)
STEADY_STATES = ("SciMLSensitivity", "SteadyStateDiffEq")
HORIZON = ("DiffEqFlux", "OrdinaryDiffEqTsit5", "Zygote")

_log = logging.getLogger(__name__)


@final
class JuliaEngine(AbstractEngine):
    """Solve and train with the Julia package PyDEQ, in this process.

    The first one starts Julia, which takes seconds; see :func:`pydeq.engines.julia.runtime.start`.
    """

    name = "julia"
    solvers = SOLVERS + ODE_METHODS
    stabilities = STABILITIES
    unrolls = tuple(name for name in SOLVERS if name != "newton")
    runs_julia = True

    def __init__(self, device: str = "auto") -> None:
        self._julia = runtime.start()
        self._asked = device
        self.device = _find_device(self._julia, device)

    def open(
        self,
        model: ModelSpec,
        solver: SolverSpec,
        optimizer: OptimizerSpec,
        params: Params,
        optimizer_state: Params | None = None,
    ) -> "JuliaSession":
        """See :meth:`AbstractEngine.open`."""
        check_supported(type(self), model, solver)
        check_params(model, params)
        device = self.device
        if device == "cuda" and (missing := missing_on_gpu(model)):
            if self._asked == "cuda":
                raise ValueError(f"{missing}. Use device='cpu' or 'auto', or engine='jax'.")
            _log.info("device='auto': the CPU (%s)", missing)
            device = "cpu"
        for asked, packages in _packages(model, solver):
            _load(self._julia, asked, packages)
        return JuliaSession(self._julia, device, model, solver, optimizer, params, optimizer_state)


def missing_on_gpu(model: ModelSpec) -> str:
    """Return what the engine has not on a GPU of what is asked for; empty: it has all."""
    if model.has_layers or not isinstance(model.init, str):
        return "On a GPU the julia engine does not have layers"
    return ""


def _find_device(julia: runtime.Julia, name: str) -> str:
    if name == "cpu":
        return "cpu"
    reason = "Julia sees no NVIDIA GPU that works"
    try:
        with runtime.calling("Looking for a GPU"):
            julia.load("CUDA")
            if julia.pydeq.has_cuda():
                return "cuda"
    except EngineError as error:
        reason = str(error)
        _log.warning("%s", reason)
    if name == "cuda":
        raise EngineUnavailableError(
            f"device='cuda' was asked for, but: {reason}. `pydeq julia install --cuda` adds "
            "Julia's CUDA packages; a CUDA driver is needed too. Or use device='auto' or 'cpu'."
        )
    return "cpu"


def _packages(model: ModelSpec, solver: SolverSpec) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield what of the specs needs Julia's packages that PyDEQ does not load, and which."""
    if solver.name in ODE_METHODS:
        yield f"solver={solver.name!r}", (*METHODS, *STEADY_STATES)
    if model.horizon is not None:
        yield "horizon", HORIZON
    elif solver.adjoint == "unrolled":
        yield "adjoint='unrolled'", ("Zygote",)
    if isinstance(model.cell, CellFunction):
        yield "a cell that is Julia code", PACKAGES


def _load(julia: runtime.Julia, asked: str, packages: tuple[str, ...]) -> None:
    with runtime.calling(f"Loading what {asked} needs"):
        missing = [str(package) for package in julia.load(*packages)]
    if missing:
        raise EngineUnavailableError(
            f"{asked} needs Julia's {', '.join(missing)}, which its project does not have. "
            "`pydeq julia install` adds them. Or do without it."
        )
