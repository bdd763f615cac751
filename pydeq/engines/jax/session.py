"""The JAX engine's side of the contract: numpy in, numpy out, one compilation per shape."""

import contextlib
from collections import deque
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pydeq.engines.base import (
    AbstractEngine,
    AbstractSession,
    BatchReport,
    EpochReport,
    OnBatch,
    check_supported,
    epoch_report,
)
from pydeq.engines.jax import compiled
from pydeq.engines.jax.cell import Layers
from pydeq.engines.jax.solvers import Controls
from pydeq.errors import EngineUnavailableError
from pydeq.model import (
    SOLVERS,
    STABILITIES,
    Equilibrium,
    ModelSpec,
    OptimizerSpec,
    Params,
    SolverSpec,
    check_params,
    iter_batches,
    padded_size,
    probes,
)

__all__ = ["JaxEngine", "JaxSession"]

CHUNK = 1024
"""Most samples that `equilibrium` solves at once."""

CHUNKS_IN_FLIGHT = 1
"""Chunks that are dispatched before the first is waited for."""

IN_FLIGHT = 4
"""Batches that are dispatched before the first is waited for, so that Ctrl-C is heard soon."""


@final
class JaxEngine(AbstractEngine):
    """Solve and train with JAX, in this process."""

    name = "jax"
    solvers = SOLVERS
    stabilities = STABILITIES
    unrolls = tuple(name for name in SOLVERS if name != "newton")

    def __init__(self, device: str = "auto") -> None:
        self.device = _find_device(device)

    def open(
        self,
        model: ModelSpec,
        solver: SolverSpec,
        optimizer: OptimizerSpec,
        params: Params,
        optimizer_state: Params | None = None,
    ) -> "JaxSession":
        """See :meth:`AbstractEngine.open`."""
        check_supported(type(self), model, solver)
        check_params(model, params)
        return JaxSession(self.device, model, solver, optimizer, params, optimizer_state)


def _find_device(name: str) -> Any:
    if name == "auto":
        return jax.devices()[0]
    try:
        return jax.devices(name)[0]
    except RuntimeError as error:
        found = sorted({d.platform for d in jax.devices()})
        raise EngineUnavailableError(
            f"device={name!r} was asked for, but JAX sees only {', '.join(found)}. "
            "For an NVIDIA GPU install pydeq[cuda] (jax's CUDA build) beside a CUDA 12 driver, "
            "or use device='auto' or 'cpu'."
        ) from error


@final
class JaxSession(AbstractSession):
    """See :class:`AbstractSession`."""

    def __init__(self, device, model, solver, optimizer, params, optimizer_state) -> None:
        self._device = device
        self._dtype = next(iter(params.values())).dtype
        self._model = model
        self._optimizer = optimizer
        self._program = compiled.Program.of(model, solver, optimizer)
        ode_abstol, ode_reltol = solver.ode_tolerances(model)
        self._controls = Controls(
            solver.abstol, solver.reltol, ode_abstol, ode_reltol, solver.max_steps
        )
        self._rates = compiled.Rates(
            optimizer.learning_rate, optimizer.alpha, optimizer.jacobian_penalty
        )
        self._epoch = 0
        self._data: Any = None
        with self._context():
            self._params = {name: jnp.array(value) for name, value in params.items()}
            self._opt_state: Any = self._load_optimizer(optimizer_state)

    @contextlib.contextmanager
    def _context(self):
        """Work on the session's device and in its dtype, whatever the user's JAX is set to."""
        with jax.default_device(self._device), jax.enable_x64(self._dtype == np.float64):
            yield

    def _array(self, value) -> jax.Array:
        return jnp.asarray(np.ascontiguousarray(value, self._dtype))

    def _load_optimizer(self, saved: Params | None) -> Any:
        state: Any = optax.adam(0.0).init(self._params)
        if not saved:
            return state
        adam, *rest = state
        count = jnp.asarray(saved["count"], adam.count.dtype)
        mu = {name: self._array(saved[f"m.{name}"]) for name in self._params}
        nu = {name: self._array(saved[f"v.{name}"]) for name in self._params}
        return (adam._replace(count=count, mu=mu, nu=nu), *rest)

    def load_data(self, x: np.ndarray, target: np.ndarray, weight: np.ndarray) -> None:
        """See :meth:`AbstractSession.load_data`."""
        with self._context():
            self._data = (self._array(x), self._array(target), np.asarray(weight, self._dtype))

    def train_epoch(
        self, order: np.ndarray, batch_size: int, on_batch: OnBatch | None = None
    ) -> EpochReport:
        """See :meth:`AbstractSession.train_epoch`."""
        batches = list(iter_batches(order, batch_size))
        rows = probes(
            self._optimizer.seed,
            self._epoch,
            len(batches),
            self._model.state_width,
            self._dtype,
        )
        n_rows = batch_size if len(order) > batch_size else padded_size(len(order))
        # The session's own state is replaced only at the end: an exception leaves it as it was.
        params, opt_state = self._params, self._opt_state
        with self._context():
            reports: list[BatchReport] = []
            in_flight: deque[jax.Array] = deque()

            def wait() -> None:
                reports.append(_report(in_flight.popleft()))
                if on_batch is not None:
                    on_batch(reports[-1])

            for indices, row in zip(batches, rows, strict=True):
                batch = self._batch(indices, n_rows, row)
                params, opt_state, report = compiled.train(
                    self._program, params, opt_state, batch, self._controls, self._rates
                )
                in_flight.append(report)
                if len(in_flight) > IN_FLIGHT:
                    wait()
            while in_flight:
                wait()
        self._params, self._opt_state = params, opt_state
        self._epoch += 1
        return epoch_report(reports)

    def _batch(self, indices: np.ndarray, n_rows: int, probe: np.ndarray) -> compiled.Batch:
        """Gather the samples at `indices`, padded to `n_rows` by samples of weight 0."""
        x, target, weight = self._data
        padded = np.zeros(n_rows, indices.dtype)
        padded[: len(indices)] = indices
        weights = np.zeros(n_rows, self._dtype)
        weights[: len(indices)] = weight[indices]
        x, target = compiled.rows(padded, x, target)
        return compiled.Batch(x, target, self._array(weights), self._array(probe))

    def equilibrium(self, x: np.ndarray) -> Equilibrium:
        """See :meth:`AbstractSession.equilibrium`."""
        parts, in_flight = [], deque()
        with self._context():
            layers = compiled.acting_layers(self._model, self._params)
            for start in range(0, len(x), CHUNK):
                in_flight.append(self._search(layers, x[start : start + CHUNK]))
                if len(in_flight) > CHUNKS_IN_FLIGHT:
                    parts.append(jax.device_get(in_flight.popleft()))
            parts += jax.device_get(list(in_flight))
        state, output, residual, n_evals, converged = (
            np.concatenate(arrays)[: len(x)] for arrays in zip(*parts, strict=True)
        )
        return Equilibrium(state, output, residual, n_evals.astype(np.int64), converged)

    def _search(self, layers: Layers, x: np.ndarray) -> Any:
        """Dispatch the search for the samples `x` and padding after them."""
        chunk = self._array(_padded(x))
        return compiled.search(
            self._model,
            self._program.solver,
            self._program.unroll if self._model.horizon is not None else None,
            self._params,
            layers,
            chunk,
            jnp.asarray(np.arange(len(chunk)) < len(x)),
            self._controls,
        )

    def loss_and_grad(
        self, x: np.ndarray, target: np.ndarray, weight: np.ndarray
    ) -> tuple[float, Params]:
        """See :meth:`AbstractSession.loss_and_grad`."""
        probe = probes(self._optimizer.seed, 0, 1, self._model.state_width, self._dtype)[0]
        with self._context():
            batch = compiled.Batch(
                self._array(_padded(x)),
                self._array(_padded(target)),
                self._array(_padded(weight)),
                self._array(probe),
            )
            loss, grads = compiled.batch_gradient(
                self._program, self._params, batch, self._controls, self._rates
            )
            return float(loss), {name: np.array(grad) for name, grad in grads.items()}

    def trajectory(self, x: np.ndarray, depth: int) -> np.ndarray:
        """See :meth:`AbstractSession.trajectory`."""
        with self._context():
            u = compiled.iterates(self._model, self._params, self._array(_padded(x)), depth)
            return np.array(u[:, : len(x)])

    def params(self) -> Params:
        """See :meth:`AbstractSession.params`."""
        return {name: np.array(value) for name, value in self._params.items()}

    def optimizer_state(self) -> Params:
        """See :meth:`AbstractSession.optimizer_state`."""
        adam = self._opt_state[0]
        return {
            "count": np.array(adam.count, np.int64),
            **{f"m.{name}": np.array(value) for name, value in adam.mu.items()},
            **{f"v.{name}": np.array(value) for name, value in adam.nu.items()},
        }

    def close(self) -> None:
        """See :meth:`AbstractSession.close`."""
        self._params, self._opt_state, self._data = {}, (), None


def _padded(x: np.ndarray) -> np.ndarray:
    """Return `x` with rows of zeros up to one of the sizes that are compiled for."""
    rows = padded_size(len(x)) - len(x)
    if not rows:
        return x
    return np.concatenate([x, np.zeros((rows, *x.shape[1:]), x.dtype)])


def _report(numbers: jax.Array) -> BatchReport:
    """Wait for a batch and return its report."""
    loss, weight, grad_norm, n_evals, n_samples, worst_residual, n_failed = numbers.tolist()
    return BatchReport(
        loss, weight, grad_norm, n_evals, int(n_samples), worst_residual, int(n_failed)
    )
