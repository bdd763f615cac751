"""The JAX engine's side of the contract: numpy in, numpy out."""

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any, final

import jax
import numpy as np

from pydeq.engines.base import (
    AbstractSession,
    BatchReport,
    EpochReport,
    OnBatch,
    epoch_report,
)
from pydeq.engines.jax import compiled
from pydeq.engines.jax.batches import Batch, TrainingData, batch_of, padded
from pydeq.engines.jax.cell import Acting, check_function
from pydeq.engines.jax.code import Code
from pydeq.engines.jax.device import Device, own_settings
from pydeq.engines.jax.forward import channels_first, channels_last
from pydeq.engines.jax.layers import acting_names
from pydeq.engines.jax.optimizer import AdamState, Rates
from pydeq.engines.jax.programs import Program, Run
from pydeq.engines.jax.solvers import Controls
from pydeq.engines.jax.vectors import Vectors, from_vectors, groups
from pydeq.model import (
    Equilibrium,
    ModelSpec,
    OptimizerSpec,
    Params,
    SolverSpec,
    chunks,
    iter_batches,
    padded_size,
    probes,
)

__all__ = ["IN_FLIGHT", "JaxSession", "report_of"]

CHUNKS_IN_FLIGHT = 1
"""Chunks that are dispatched before the first is waited for."""

IN_FLIGHT = 4
"""Batches that are dispatched before the first is waited for, so that Ctrl-C is heard soon."""


@final
class JaxSession(AbstractSession):
    """See :class:`AbstractSession`."""

    def __init__(
        self,
        device: Device,
        model: ModelSpec,
        solver: SolverSpec,
        optimizer: OptimizerSpec,
        params: Params,
        optimizer_state: Params | None,
    ) -> None:
        self._device = device
        self._dtype = next(iter(params.values())).dtype
        self._model = model
        self._optimizer = optimizer
        self._code = Code.of(model, solver, optimizer)
        self._solver = solver
        self._epoch = optimizer.epoch
        self._data: TrainingData | None = None
        with self.context():
            check_function(model, self._dtype)
            self._controls = self._put_controls(model, solver)
            self._contraction = self._put(model.contraction)
            self._rates = Rates(
                self._put(optimizer.learning_rate),
                self._put(optimizer.alpha),
                self._put(optimizer.jacobian_penalty),
                self._put(optimizer.init_penalty),
                self._put(optimizer.train_encoder, bool),
            )
            self._state = self._put_state(params, optimizer_state or {})
            # No residual is at most these, so that every step of the depth is taken.
            never, depth = self._put(-1.0), self._put(solver.fixed_depth or 0, np.int32)
            self._fixed = self._controls._replace(abstol=never, reltol=never, max_steps=depth)
        self._acting: Acting | None = None
        self._bound: dict[Program, Run] | None = None

    def context(self) -> contextlib.AbstractContextManager[None]:
        """Work on the session's device, in its dtype."""
        return own_settings(self._device, self._dtype)

    def _put(self, value: Any, dtype: Any = None) -> jax.Array:
        """Return `value` on the device, of the session's dtype or another.

        On a CPU the device may read the array in place: it must not be written to afterwards.
        """
        array = np.asarray(value, dtype or self._dtype, order="C")
        return jax.device_put(array, self._device)

    def _put_controls(self, model: ModelSpec, solver: SolverSpec) -> Controls:
        ode_abstol, ode_reltol = solver.ode_tolerances(model)
        return Controls(
            self._put(solver.abstol),
            self._put(solver.reltol),
            self._put(ode_abstol),
            self._put(ode_reltol),
            self._put(solver.max_steps, np.int32),
            self._put(model.horizon or 0.0),
        )

    def _put_state(self, params: Params, saved: Params) -> AdamState:
        def put(values: Params) -> Vectors:
            # A copy: on a CPU the device may read the array in place.
            return tuple(
                self._put(np.concatenate([values[name].ravel() for name in group]))
                for group in groups(self._model)
            )

        def moment(kind: str) -> Vectors:
            if not saved:
                return put({name: np.zeros_like(value) for name, value in params.items()})
            return put({name: saved[f"{kind}.{name}"] for name in params})

        count = self._put(saved.get("count", 0), np.int32)
        return AdamState(put(params), moment("m"), moment("v"), count)

    def load_data(self, x: np.ndarray, target: np.ndarray, weight: np.ndarray) -> None:
        """See :meth:`AbstractSession.load_data`."""
        with self.context():
            self._data = TrainingData(x, target, weight, self._device)

    def train_epoch(
        self, order: np.ndarray, batch_size: int, on_batch: OnBatch | None = None
    ) -> EpochReport:
        """See :meth:`AbstractSession.train_epoch`."""
        indices = list(iter_batches(order, batch_size))
        signs = self.signs(len(indices))
        n_rows = batch_size if len(order) > batch_size else padded_size(len(order))
        # The session's own state is replaced only at the end: an exception leaves it as it was.
        state = self._state
        reports: list[BatchReport] = []
        in_flight: deque[jax.Array] = deque()

        def wait() -> None:
            reports.append(report_of(in_flight.popleft()))
            if on_batch is not None:
                on_batch(reports[-1])

        with self.context(), self.binding():
            for batch in self.batches(indices, n_rows, signs):
                state, _, report = self._step(state, batch, len(order))
                in_flight.append(report)
                if len(in_flight) > IN_FLIGHT:
                    wait()
            while in_flight:
                wait()
        self.end_epoch(state)
        return epoch_report(reports)

    @property
    def state(self) -> AdamState:
        """What the next epoch begins with."""
        return self._state

    def end_epoch(self, state: AdamState) -> None:
        """Take over the state at the end of an epoch."""
        self._state, self._acting = state, None
        self._epoch += 1

    def _training(self, n_samples: int) -> tuple[Code, Controls]:
        """Return what the steps of the next epoch, of so many samples, are compiled for."""
        depth = self._solver.fixed_depth
        if depth is None or self._epoch >= self._solver.fixed_depth_epochs:
            return self._code.of_job(n_samples), self._controls
        return self._code.of_depth(depth).of_job(n_samples), self._fixed

    def signs(self, n_batches: int) -> np.ndarray:
        """Return the probes of this epoch's batches, ``(n_batches, n_state)``."""
        if self._model.stability != "jacobian":  # nothing looks at them
            return np.broadcast_to(np.ones((), self._dtype), (n_batches, self._model.state_width))
        return self._probes(self._epoch, n_batches)

    def _probes(self, epoch: int, n_batches: int) -> np.ndarray:
        """Return what stands for the same elements of a state in all engines."""
        signs = probes(self._optimizer.seed, epoch, n_batches, self._model.state_width, self._dtype)
        return channels_last(signs, self._model.network.state_shape)

    def batches(self, indices: list[np.ndarray], n_rows: int, signs: np.ndarray) -> Iterator[Batch]:
        """See :meth:`TrainingData.batches`."""
        assert self._data is not None, "load_data comes first"
        return self._data.batches(indices, n_rows, signs)

    @contextlib.contextmanager
    def binding(self) -> Iterator[None]:
        """Look each program up once, while no shape changes: it takes as long as a small batch."""
        self._bound = {}
        try:
            yield
        finally:
            self._bound = None

    def _run(self, program: Program, code: Code, *args: Any) -> Any:
        if self._bound is None:
            return program(code, *args)
        run = self._bound.get(program)
        if run is None:
            run = self._bound[program] = program.bind(code, *args)
        return run(jax.tree.leaves(args))

    def _step(self, state: AdamState, batch: Batch, n_samples: int) -> compiled.Stepped:
        """Take an optimiser step from `state`, in a job of so many samples."""
        code, controls = self._training(n_samples)
        if code.compact:
            given = state, self._contraction, batch, controls, self._rates
            return compiled.stepped(self._run(compiled.whole_step, code, *given))
        solved = self._solved(code, controls, state, batch)
        return compiled.stepped(self._run(compiled.step, code.step, state, *solved))

    def _solved(
        self, code: Code, controls: Controls, state: AdamState, batch: Batch
    ) -> tuple[Any, ...]:
        """Return what the gradient is made from, beside the state."""
        acting = self._act(state.theta)
        found = None
        if code.unroll is None:
            found = self._search(code, acting, batch.x, batch.weight)
        return acting, batch, found, controls, self._rates

    def share(self, state: AdamState, batch: Batch, n_samples: int) -> tuple[jax.Array, jax.Array]:
        """Return this device's share of a step; see :func:`pydeq.engines.jax.compiled.share`."""
        code, controls = self._training(n_samples)
        solved = self._solved(code, controls, state, batch)
        return self._run(compiled.share, code.step, state.theta, *solved)

    def updated(self, state: AdamState, sums: jax.Array, worst: jax.Array) -> compiled.Stepped:
        """Take the step whose shares have these sums."""
        code = self._code.step
        return compiled.stepped(self._run(compiled.update, code, state, sums, worst, self._rates))

    def _act(self, theta: Vectors) -> Acting:
        values = self._run(compiled.act, self._code.acting, theta, self._contraction)
        return dict(zip(acting_names(self._model), values, strict=True))

    def _act_now(self) -> Acting:
        """Return the session's parameters as they act."""
        if self._acting is None:
            self._acting = self._act(self._state.theta)
        return self._acting

    def _search(
        self, code: Code, acting: Acting, x: jax.Array, weight: jax.Array
    ) -> compiled.Found:
        """Dispatch the search for the samples that have a weight."""
        given = acting, x, weight, self._controls
        return compiled.Found(*self._run(compiled.search, code.search, *given))

    def equilibrium(self, x: np.ndarray) -> Equilibrium:
        """See :meth:`AbstractSession.equilibrium`."""
        parts, in_flight = [], deque()
        with self.context():
            acting, code = self._act_now(), self._code.of_job(len(x))
            for first, last, n_rows in chunks(len(x)):
                chunk = self._put(padded(x[first:last], n_rows))
                there = self._put(np.arange(n_rows) < last - first)
                found = self._search(code, acting, chunk, there)
                in_flight.append(found[:5])
                if len(in_flight) > CHUNKS_IN_FLIGHT:
                    parts.append(jax.device_get(in_flight.popleft()))
            parts += jax.device_get(list(in_flight))
        state, output, residual, n_evals, converged = (
            np.concatenate(arrays)[: len(x)] for arrays in zip(*parts, strict=True)
        )
        state = channels_first(state, self._model.network.state_shape)
        return Equilibrium(state, output, residual, n_evals.astype(np.int64), converged)

    def loss_and_grad(
        self, x: np.ndarray, target: np.ndarray, weight: np.ndarray
    ) -> tuple[float, Params]:
        """See :meth:`AbstractSession.loss_and_grad`."""
        probe = self._probes(0, 1)[0]
        n_rows = padded_size(len(x))
        with self.context():
            batch = batch_of(x, target, weight, probe, n_rows, self._device)
            stepped = self._step(self._state, batch, len(x))
            return float(stepped.report[0]), self._named(stepped.gradient)

    def trajectory(self, x: np.ndarray, depth: int) -> np.ndarray:
        """See :meth:`AbstractSession.trajectory`."""
        parts = []
        with self.context():
            acting, code = self._act_now(), self._code.cell
            for first, last, n_rows in chunks(len(x)):
                u, h = compiled.start(code, acting, self._put(padded(x[first:last], n_rows)))
                states = [u]
                for _ in range(depth):
                    states += compiled.apply_cell(code, acting, states[-1], h)
                parts.append(np.stack(jax.device_get(states))[:, : last - first])
        return channels_first(np.concatenate(parts, axis=1), self._model.network.state_shape)

    def jvp(self, x: np.ndarray, state: np.ndarray, tangent: np.ndarray) -> np.ndarray:
        """See :meth:`AbstractSession.jvp`."""
        parts, shape = [], self._model.network.state_shape
        given = x, channels_last(state, shape), channels_last(tangent, shape)
        with self.context():
            acting, code = self._act_now(), self._code.cell
            for first, last, n_rows in chunks(len(x)):
                rows = (self._put(padded(array[first:last], n_rows)) for array in given)
                (product,) = compiled.jvp(code, acting, *rows)
                parts.append(jax.device_get(product)[: last - first])
        return channels_first(np.concatenate(parts), shape)

    def params(self) -> Params:
        """See :meth:`AbstractSession.params`."""
        return self._named(self._state.theta)

    def optimizer_state(self) -> Params:
        """See :meth:`AbstractSession.optimizer_state`."""
        with self.context():
            count = np.array(self._state.count, np.int64)
        return {
            "count": count,
            **{f"m.{name}": value for name, value in self._named(self._state.mean).items()},
            **{f"v.{name}": value for name, value in self._named(self._state.square).items()},
        }

    def _named(self, vectors: Vectors) -> Params:
        with self.context():
            named = from_vectors(self._model, tuple(np.asarray(vector) for vector in vectors))
        return {name: value.copy() for name, value in named.items()}

    def close(self) -> None:
        """See :meth:`AbstractSession.close`."""
        del self._state
        self._data = self._acting = None


def report_of(numbers: jax.Array) -> BatchReport:
    """Wait for a batch and return its report."""
    loss, weight, grad_norm, n_evals, n_samples, worst_residual, n_failed = numbers.tolist()
    return BatchReport(
        loss, weight, grad_norm, n_evals, int(n_samples), worst_residual, int(n_failed)
    )
