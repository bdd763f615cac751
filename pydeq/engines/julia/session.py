"""The Julia engine's side of the contract: numpy in, numpy out, PyDEQ.jl at work between.

PyDEQ is called once a batch, so that Ctrl-C is heard between two batches.
"""

import logging
from collections.abc import Callable
from typing import Any, final

import numpy as np

from pydeq.engines.base import (
    AbstractEngine,
    AbstractSession,
    BatchReport,
    EpochReport,
    OnBatch,
    check_supported,
    epoch_report,
)
from pydeq.engines.julia import runtime
from pydeq.engines.julia.arrays import from_julia, julia_view
from pydeq.engines.julia.layers import describe
from pydeq.errors import EngineError, EngineUnavailableError
from pydeq.model import (
    ODE_METHODS,
    SOLVERS,
    STABILITIES,
    Equilibrium,
    ModelSpec,
    OptimizerSpec,
    Params,
    SolverSpec,
    check_params,
    iter_batches,
    probes,
)

__all__ = ["JuliaEngine", "JuliaSession"]

CHUNK = 1024
"""Most samples that `equilibrium` solves at once."""

METHOD_PACKAGES = ("AdamsBashforthMoulton", "LowOrderRK", "StabilizedRK")
"""The parts of OrdinaryDiffEq that have ``ODE_METHODS``."""

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

    def __init__(self, device: str = "auto") -> None:
        self._julia = runtime.start()
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
        if solver.name in ODE_METHODS:
            _load_methods(self._julia, solver.name)
        return JuliaSession(
            self._julia, self.device, model, solver, optimizer, params, optimizer_state
        )


def _find_device(julia: runtime.Julia, name: str) -> str:
    if name == "cpu":
        return "cpu"
    reason = "Julia sees no NVIDIA GPU that works"
    try:
        with runtime.calling("Looking for a GPU"):
            julia.load("CUDA", "LuxCUDA", "cuDNN")
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


def _load_methods(julia: runtime.Julia, name: str) -> None:
    """Load OrdinaryDiffEq's methods beside Tsit5; PyDEQ does not, for the time that takes."""
    packages = [f"OrdinaryDiffEq{kind}" for kind in METHOD_PACKAGES]
    with runtime.calling(f"Loading solver={name!r}"):
        missing = [str(package) for package in julia.load(*packages)]
    if missing:
        raise EngineUnavailableError(
            f"solver={name!r} needs Julia's {', '.join(missing)}, which its project does not have. "
            "`pydeq julia install` adds them. Or use solver='tsit5'."
        )


@final
class JuliaSession(AbstractSession):
    """See :class:`AbstractSession`."""

    def __init__(self, julia, device, model, solver, optimizer, params, optimizer_state) -> None:
        self._julia: runtime.Julia = julia
        self._dtype = next(iter(params.values())).dtype
        self._model: ModelSpec = model
        self._optimizer: OptimizerSpec = optimizer
        self._names = list(params)
        self._n_loaded = 0
        self._epoch = optimizer.epoch
        self._undo: Any = None
        settings = _settings(julia, device, model, solver, optimizer)
        with runtime.calling("Opening a session"):
            self._session: Any = julia.pydeq.open_session(
                **settings,
                **self._optimizer_settings(optimizer_state),
                names=julia.strings(*self._names),
                arrays=self._vector(params.values()),
            )

    def _array(self, value: Any) -> Any:
        return self._julia.array(julia_view(value, self._dtype))

    def _target(self, target: np.ndarray) -> Any:
        """Hand over values, or classes, which Julia counts from 1."""
        if target.ndim == 1:
            return self._julia.array(target + np.int32(1))
        return self._array(target)

    def _vector(self, values: Any) -> Any:
        return self._julia.vector(*[self._array(value) for value in values])

    def _named(self, arrays: Any, prefix: str = "") -> Params:
        values = [from_julia(array) for array in arrays]
        return {f"{prefix}{name}": v for name, v in zip(self._names, values, strict=True)}

    def _optimizer_settings(self, saved: Params | None) -> dict[str, Any]:
        if not saved:
            return {}
        return {
            "opt_count": int(saved["count"]),
            "opt_m": self._vector(saved[f"m.{name}"] for name in self._names),
            "opt_v": self._vector(saved[f"v.{name}"] for name in self._names),
        }

    def _call(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """Call a function of PyDEQ on this session, after what is left to be undone."""
        if self._session is None:
            raise EngineError("This session has been closed.")
        if self._undo is not None:
            snapshot, self._undo = self._undo, None
            try:
                self._call("restore_b", snapshot)
            except BaseException:
                self._undo = snapshot
                raise
        with runtime.calling(_DOING.get(function, function)):
            return getattr(self._julia.pydeq, function)(self._session, *args, **kwargs)

    def load_data(self, x: np.ndarray, target: np.ndarray, weight: np.ndarray) -> None:
        """See :meth:`AbstractSession.load_data`."""
        # Julia converts a batch at a time, of what it has a type for.
        dtype = x.dtype if x.dtype.kind in "biuf" and x.dtype.itemsize <= 8 else self._dtype
        samples = self._julia.array(julia_view(x, dtype.newbyteorder("=")))
        self._call("load_data_b", samples, self._target(target), self._array(weight))
        self._n_loaded = len(x)

    def train_epoch(
        self, order: np.ndarray, batch_size: int, on_batch: OnBatch | None = None
    ) -> EpochReport:
        """See :meth:`AbstractSession.train_epoch`."""
        order = np.asarray(order, np.int64)
        if len(order) and not 0 <= order.min() <= order.max() < self._n_loaded:
            raise IndexError(
                f"The order of an epoch has indices {order.min()} to {order.max()}; "
                f"{self._n_loaded} samples are loaded."
            )
        batches = list(iter_batches(order, batch_size))
        rows = probes(
            self._optimizer.seed, self._epoch, len(batches), self._model.state_width, self._dtype
        )
        # Undone by whatever is asked of the session next, unless the epoch comes to its end: an
        # exception, a second one while this one is handled included, leaves nothing half done.
        self._undo = self._call("snapshot")
        reports = self._train(batches, rows, on_batch)
        self._undo = None
        self._epoch += 1
        return epoch_report(reports)

    def _train(
        self, batches: list[np.ndarray], rows: np.ndarray, on_batch: OnBatch | None
    ) -> list[BatchReport]:
        train: Callable[..., Any] = self._julia.pydeq.train_batch_b
        reports = []
        with runtime.calling(_DOING["train_batch_b"]):
            for indices, row in zip(batches, rows, strict=True):
                probe, at = self._julia.array(row), self._julia.array(indices + 1)
                found = train(self._session, at, probe)
                reports.append(
                    BatchReport(*(getattr(found, field) for field in BatchReport._fields))
                )
                if on_batch is not None:
                    on_batch(reports[-1])
        return reports

    def equilibrium(self, x: np.ndarray) -> Equilibrium:
        """See :meth:`AbstractSession.equilibrium`."""
        parts = []
        for start in range(0, len(x), CHUNK):
            # Each sample by itself: no answer depends on what else is asked for.
            found = self._call("equilibrium", self._array(x[start : start + CHUNK]), each=True)
            fields = ("state", "output", "residual", "n_evals", "converged")
            parts.append([from_julia(getattr(found, field)) for field in fields])
        state, output, residual, n_evals, converged = (
            np.concatenate(arrays) for arrays in zip(*parts, strict=True)
        )
        return Equilibrium(
            state, output, residual, n_evals.astype(np.int64), converged.astype(bool)
        )

    def loss_and_grad(
        self, x: np.ndarray, target: np.ndarray, weight: np.ndarray
    ) -> tuple[float, Params]:
        """See :meth:`AbstractSession.loss_and_grad`."""
        probe = probes(self._optimizer.seed, 0, 1, self._model.state_width, self._dtype)[0]
        x, weight, probe = (self._array(value) for value in (x, weight, probe))
        loss, grads = self._call("loss_and_grad", x, self._target(target), weight, probe)
        return float(loss), self._named(grads)

    def trajectory(self, x: np.ndarray, depth: int) -> np.ndarray:
        """See :meth:`AbstractSession.trajectory`."""
        return from_julia(self._call("trajectory", self._array(x), int(depth)))

    def params(self) -> Params:
        """See :meth:`AbstractSession.params`."""
        return self._named(self._call("get_arrays"))

    def optimizer_state(self) -> Params:
        """See :meth:`AbstractSession.optimizer_state`."""
        count, m, v = self._call("optimizer_state")
        return {
            "count": np.array(int(count), np.int64),
            **self._named(m, "m."),
            **self._named(v, "v."),
        }

    def close(self) -> None:
        """See :meth:`AbstractSession.close`."""
        self._session = self._undo = None


_DOING = {
    "load_data_b": "Loading the data",
    "train_batch_b": "Training",
    "snapshot": "Training",
    "restore_b": "Undoing an epoch",
    "equilibrium": "The search for equilibria",
    "loss_and_grad": "The gradient",
    "trajectory": "The trajectory",
    "get_arrays": "Reading the weights",
    "optimizer_state": "Reading the optimiser's state",
}
"""What a function of PyDEQ does, in words, for the message of an error."""


def _settings(
    julia: runtime.Julia,
    device: str,
    model: ModelSpec,
    solver: SolverSpec,
    optimizer: OptimizerSpec,
) -> dict[str, Any]:
    """Return the specs as the keywords of PyDEQ's ``open_session``."""
    ode_abstol, ode_reltol = solver.ode_tolerances(model)
    return {
        "n_features": model.n_features,
        "n_outputs": model.n_outputs,
        "n_state": model.state_width if model.has_layers else model.n_state,
        "hidden_layer_sizes": julia.integers(*model.hidden_layer_sizes),
        "activation": model.activation,
        "stability": model.stability,
        "contraction": model.contraction,
        "horizon": model.horizon,
        "solver": solver.name,
        "abstol": solver.abstol,
        "reltol": solver.reltol,
        "ode_abstol": ode_abstol,
        "ode_reltol": ode_reltol,
        "max_steps": solver.max_steps,
        "adjoint": solver.adjoint,
        "loss": optimizer.loss,
        "learning_rate": optimizer.learning_rate,
        "alpha": optimizer.alpha,
        "jacobian_penalty": optimizer.jacobian_penalty,
        "train_encoder": optimizer.train_encoder,
        "device": device,
        "layers": describe(julia, model) if model.has_layers else None,
    }
