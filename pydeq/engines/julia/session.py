"""A session of the Julia engine: numpy in, numpy out, PyDEQ.jl at work between.

PyDEQ is called once a batch, so that Ctrl-C is heard between two batches.
"""

from collections.abc import Callable
from typing import Any, final

import numpy as np

from pydeq.engines.base import (
    AbstractSession,
    BatchReport,
    EpochReport,
    OnBatch,
    epoch_report,
)
from pydeq.engines.julia import runtime
from pydeq.engines.julia.arrays import to_julia
from pydeq.engines.julia.layers import describe
from pydeq.errors import EngineError
from pydeq.model import (
    Equilibrium,
    ModelSpec,
    OptimizerSpec,
    Params,
    SolverSpec,
    iter_batches,
    parameter_shapes,
    probes,
)

__all__ = ["JuliaSession"]

CHUNK = 1024
"""Most samples of a thread that `equilibrium` solves in one call: Ctrl-C is heard between two."""


@final
class JuliaSession(AbstractSession):
    """See :class:`AbstractSession`.

    Arrays are numpy's: Julia reads and writes their memory, which this side keeps alive.
    """

    def __init__(self, julia, device, model, solver, optimizer, params, optimizer_state) -> None:
        self._julia: runtime.Julia = julia
        self._dtype = next(iter(params.values())).dtype
        self._model: ModelSpec = model
        self._solver: SolverSpec = solver
        self._optimizer: OptimizerSpec = optimizer
        self._shapes = parameter_shapes(model)  # in Julia's order
        self._n_loaded = 0
        self._held: list[np.ndarray] = []  # what Julia's session has no copy of
        self._epoch = optimizer.epoch
        self._undo: Any = None
        with runtime.calling("Opening a session"):
            settings = _settings(julia, device, model, solver, optimizer)
            self._session: Any = self._open(settings, params, optimizer_state or {})

    def _open(self, settings: dict[str, Any], params: Params, saved: Params) -> Any:
        """Open Julia's session, which copies what it is given."""
        groups = {"arrays": {name: params[name] for name in self._shapes}}
        if saved:
            settings["opt_count"] = int(saved["count"])
            for moment in ("m", "v"):
                groups[f"opt_{moment}"] = {name: saved[f"{moment}.{name}"] for name in self._shapes}
        held = {
            key: [self._array(value) for value in group.values()] for key, group in groups.items()
        }
        settings |= {key: self._vector(arrays) for key, arrays in held.items()}
        settings["names"] = self._julia.strings(*self._shapes)
        return self._julia.pydeq.open_session(
            self._julia.strings(*settings), self._julia.vector(*settings.values())
        )

    def _array(self, value: Any) -> np.ndarray:
        return np.ascontiguousarray(value, self._dtype)

    def _empty(self, *shape: int) -> np.ndarray:
        return np.empty(shape, self._dtype)

    def _target(self, target: np.ndarray) -> np.ndarray:
        """Return values, or classes, which Julia counts from 1."""
        if target.ndim == 1:
            return np.asarray(target + 1, np.int32)
        return self._array(target)

    def _in_julia(self, value: Any) -> Any:
        """Return an array, or a list of them, as Julia's in the same memory; all else as it is."""
        if isinstance(value, np.ndarray):
            return to_julia(self._julia.pydeq.array_at, value)
        return self._vector(value) if isinstance(value, list) else value

    def _vector(self, arrays: list[np.ndarray]) -> Any:
        return self._julia.vector(*map(self._in_julia, arrays))

    def _call(self, function: str, *args: Any) -> Any:
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
            given = map(self._in_julia, args)
            return getattr(self._julia.pydeq, function)(self._session, *given)

    def load_data(self, x: np.ndarray, target: np.ndarray, weight: np.ndarray) -> None:
        """See :meth:`AbstractSession.load_data`."""
        # Julia converts a batch at a time, of what it has a type for.
        dtype = x.dtype if x.dtype.kind in "biuf" and x.dtype.itemsize <= 8 else self._dtype
        samples = np.ascontiguousarray(x, dtype.newbyteorder("="))
        # Julia reads the samples where they are: a copy of its own would bring on its garbage
        # collector. Both are held until it is sure which it has.
        self._held = [*self._held, samples]
        self._call("load_data_b", samples, self._target(target), self._array(weight))
        self._held = [samples]
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
        step: Callable[..., Any] = self._julia.pydeq.write_step_b
        numbers, depth = np.empty(7), self._depth()
        report = self._in_julia(numbers)
        reports = []
        with runtime.calling(_DOING["write_step_b"]):
            for indices, row in zip(batches, rows, strict=True):
                at = indices + 1
                step(self._session, self._in_julia(at), self._in_julia(row), depth, report)
                loss, weight, norm, n_evals, n_samples, worst, n_failed = numbers.tolist()
                reports.append(
                    BatchReport(loss, weight, norm, n_evals, int(n_samples), worst, int(n_failed))
                )
                if on_batch is not None:
                    on_batch(reports[-1])
                    runtime.Process.signals.hold()  # whatever that was
        return reports

    def _depth(self) -> int:
        """Return the fixed depth of the next epoch, 0 for equilibria."""
        is_fixed = self._epoch < self._solver.fixed_depth_epochs
        return (self._solver.fixed_depth or 0) if is_fixed else 0

    def equilibrium(self, x: np.ndarray) -> Equilibrium:
        """See :meth:`AbstractSession.equilibrium`."""
        n = len(x)
        found = Equilibrium(
            self._empty(n, self._model.state_width),
            self._empty(n, self._model.n_outputs),
            self._empty(n),
            np.empty(n, np.int64),
            np.empty(n, bool),
        )
        arrays = (found.state, found.output, found.residual, found.n_evals, found.converged)
        step = CHUNK * self._julia.n_threads
        for start in range(0, n, step):
            rows = slice(start, start + step)
            # Each sample by itself: no answer depends on what else is asked for.
            parts = [array[rows] for array in arrays]
            self._call("write_equilibrium_b", self._array(x[rows]), *parts)
        return found

    def loss_and_grad(
        self, x: np.ndarray, target: np.ndarray, weight: np.ndarray
    ) -> tuple[float, Params]:
        """See :meth:`AbstractSession.loss_and_grad`."""
        probe = probes(self._optimizer.seed, 0, 1, self._model.state_width, self._dtype)[0]
        x, weight, probe = (self._array(value) for value in (x, weight, probe))
        gradient = self._like_params()
        given = (x, self._target(target), weight, probe, self._depth())
        loss = self._call("write_gradient_b", *given, list(gradient.values()))
        return float(loss), gradient

    def trajectory(self, x: np.ndarray, depth: int) -> np.ndarray:
        """See :meth:`AbstractSession.trajectory`."""
        states = self._empty(int(depth) + 1, len(x), self._model.state_width)
        self._call("write_trajectory_b", self._array(x), states)
        return states

    def jvp(self, x: np.ndarray, state: np.ndarray, tangent: np.ndarray) -> np.ndarray:
        """See :meth:`AbstractSession.jvp`."""
        product = self._empty(*state.shape)
        self._call("write_jvp_b", *map(self._array, (x, state, tangent)), product)
        return product

    def _like_params(self) -> Params:
        return {name: self._empty(*shape) for name, shape in self._shapes.items()}

    def params(self) -> Params:
        """See :meth:`AbstractSession.params`."""
        params = self._like_params()
        self._call("write_params_b", list(params.values()))
        return params

    def optimizer_state(self) -> Params:
        """See :meth:`AbstractSession.optimizer_state`."""
        m, v = self._like_params(), self._like_params()
        count = self._call("write_moments_b", list(m.values()), list(v.values()))
        return {
            "count": np.array(int(count), np.int64),
            **{f"m.{name}": value for name, value in m.items()},
            **{f"v.{name}": value for name, value in v.items()},
        }

    def close(self) -> None:
        """See :meth:`AbstractSession.close`."""
        self._session = self._undo = None
        self._held = []


_DOING = {
    "load_data_b": "Loading the data",
    "write_step_b": "Training",
    "snapshot": "Training",
    "restore_b": "Undoing an epoch",
    "write_equilibrium_b": "The search for equilibria",
    "write_gradient_b": "The gradient",
    "write_trajectory_b": "The trajectory",
    "write_jvp_b": "The cell's derivative",
    "write_params_b": "Reading the weights",
    "write_moments_b": "Reading the optimiser's state",
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
    hidden = model.hidden_layer_sizes if model.cell is None else ()
    return {
        "n_features": int(model.n_features),
        "n_outputs": int(model.n_outputs),
        "n_state": model.state_width if model.has_layers else model.n_state,
        "hidden_layer_sizes": julia.integers(*hidden),
        "activation": model.activation,
        "stability": model.stability,
        "contraction": float(model.contraction),
        "horizon": None if model.horizon is None else float(model.horizon),
        "init": model.init if isinstance(model.init, str) else "cell",
        "solver": solver.name,
        "abstol": float(solver.abstol),
        "reltol": float(solver.reltol),
        "ode_abstol": float(ode_abstol),
        "ode_reltol": float(ode_reltol),
        "max_steps": int(solver.max_steps),
        "adjoint": solver.adjoint,
        "loss": optimizer.loss,
        "learning_rate": float(optimizer.learning_rate),
        "alpha": float(optimizer.alpha),
        "jacobian_penalty": float(optimizer.jacobian_penalty),
        "init_penalty": float(optimizer.init_penalty),
        "train_encoder": bool(optimizer.train_encoder),
        "device": device,
        "layers": describe(julia, model),
    }
