"""Training on several devices, of one process or of many: each solves its share of every batch.

The shares of a step are added, a vector as long as the gradient; a search has no part of another
device in it. JAX's own runtime connects the processes
(``jax.distributed.initialize``).
"""

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pydeq.engines.base import AbstractSession, BatchReport, EpochReport, OnBatch, epoch_report
from pydeq.engines.group import AbstractGroup, gather_json
from pydeq.engines.jax.device import Device
from pydeq.engines.jax.session import IN_FLIGHT, JaxSession, report_of
from pydeq.errors import EngineError
from pydeq.model import (
    Equilibrium,
    ModelSpec,
    OptimizerSpec,
    Params,
    SolverSpec,
    iter_batches,
    padded_size,
)

__all__ = ["JaxGroup", "ParallelSession"]


@final
class JaxGroup(AbstractGroup):
    """The processes that ``jax.distributed`` has connected; may be one."""

    def __init__(self) -> None:
        self.rank, self.size = jax.process_index(), jax.process_count()

    def gather(self, content: bytes) -> list[bytes]:
        """See :meth:`AbstractGroup.gather`."""
        if self.size == 1:
            return [content]
        with _others_may_end():
            sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(content))))
            padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
            padded[: len(content)] = np.frombuffer(content, np.uint8)
            found = np.asarray(multihost_utils.process_allgather(padded))
        return [row[:size].tobytes() for row, size in zip(found, sizes, strict=True)]


@contextlib.contextmanager
def _others_may_end() -> Iterator[None]:
    """Say in words what it means if a collective fails."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise EngineError(
            "The processes of this fit could not reach each other: one of them has ended, or the "
            f"network has failed ({_first_line(error)}). Start all of them again; a fit with "
            "checkpoint=... goes on from its newest checkpoint."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


@final
class ParallelSession(AbstractSession):
    """See :class:`AbstractSession`; a session of its own on each device of this process.

    In several processes the data and the order of an epoch are this process's share: each step
    takes the next batch of every process. What only solves is done by this process alone.
    """

    def __init__(
        self,
        devices: list[Device],
        model: ModelSpec,
        solver: SolverSpec,
        optimizer: OptimizerSpec,
        params: Params,
        optimizer_state: Params | None,
    ) -> None:
        self._group = JaxGroup()
        local = [d for d in devices if d.process_index == self._group.rank]
        specs = model, solver, optimizer, params, optimizer_state
        self._parts = [JaxSession(device, *specs) for device in local]
        self._mesh = Mesh(np.array(devices), ("shard",))
        n = len(devices)
        pairwise = devices[0].platform == "cpu" and n & (n - 1) == 0
        self._sum = jax.jit(
            jax.shard_map(
                partial(_added_in_pairs, n) if pairwise else _added,
                mesh=self._mesh,
                in_specs=(P("shard"), P("shard")),
                out_specs=(P(), P()),
                check_vma=False,
            )
        )

    def load_data(self, x: np.ndarray, target: np.ndarray, weight: np.ndarray) -> None:
        """See :meth:`AbstractSession.load_data`."""
        for part in self._parts:
            part.load_data(x, target, weight)

    def train_epoch(
        self, order: np.ndarray, batch_size: int, on_batch: OnBatch | None = None
    ) -> EpochReport:
        """See :meth:`AbstractSession.train_epoch`."""
        indices = list(iter_batches(order, batch_size))
        facts = gather_json(self._group, [len(indices), len(order)])
        n_batches, n_samples = max(n for n, _ in facts), sum(n for _, n in facts)
        # One that has fewer batches goes along with empty ones.
        indices += [order[:0]] * (n_batches - len(indices))
        n_parts = len(self._parts)
        n_rows = -(-batch_size // n_parts)
        n_rows = n_rows if len(order) > batch_size else padded_size(n_rows)
        signs = self._parts[0].signs(n_batches)
        states = [part.state for part in self._parts]
        reports: list[BatchReport] = []
        in_flight: deque[jax.Array] = deque()

        def wait() -> None:
            with _others_may_end():
                reports.append(report_of(in_flight.popleft()))
            if on_batch is not None:
                on_batch(reports[-1])

        with contextlib.ExitStack() as stack:
            stack.enter_context(self._parts[0].context())
            for part in self._parts:
                stack.enter_context(part.binding())
            streams = [
                part.batches([index[i::n_parts] for index in indices], n_rows, signs)
                for i, part in enumerate(self._parts)
            ]
            for batches in zip(*streams, strict=True):
                with _others_may_end():
                    states, report = self._step(states, list(batches), n_samples)
                in_flight.append(report)
                if len(in_flight) > IN_FLIGHT:
                    wait()
            while in_flight:
                wait()
        for part, state in zip(self._parts, states, strict=True):
            part.end_epoch(state)
        return epoch_report(reports)

    def _step(self, states: list, batches: list, n_samples: int) -> tuple[list, jax.Array]:
        """Take a step: shares, their sum, the same update on each device."""
        shares = [
            part.share(state, batch, n_samples)
            for part, state, batch in zip(self._parts, states, batches, strict=True)
        ]
        sums, worst = self._sum(
            *(self._across(list(of_kind)) for of_kind in zip(*shares, strict=True))
        )
        stepped = [
            part.updated(state, s.data, w.data)
            for part, state, s, w in zip(
                self._parts, states, sums.addressable_shards, worst.addressable_shards, strict=True
            )
        ]
        return [step.state for step in stepped], stepped[0].report

    def _across(self, arrays: Sequence[jax.Array]) -> jax.Array:
        """Return arrays ``(1, ...)``, one a device, as one of all devices."""
        shape = (self._mesh.size, *arrays[0].shape[1:])
        return jax.make_array_from_single_device_arrays(
            shape, NamedSharding(self._mesh, P("shard")), list(arrays)
        )

    def equilibrium(self, x: np.ndarray) -> Equilibrium:
        """See :meth:`AbstractSession.equilibrium`."""
        return self._parts[0].equilibrium(x)

    def loss_and_grad(
        self, x: np.ndarray, target: np.ndarray, weight: np.ndarray
    ) -> tuple[float, Params]:
        """See :meth:`AbstractSession.loss_and_grad`."""
        return self._parts[0].loss_and_grad(x, target, weight)

    def trajectory(self, x: np.ndarray, depth: int) -> np.ndarray:
        """See :meth:`AbstractSession.trajectory`."""
        return self._parts[0].trajectory(x, depth)

    def jvp(self, x: np.ndarray, state: np.ndarray, tangent: np.ndarray) -> np.ndarray:
        """See :meth:`AbstractSession.jvp`."""
        return self._parts[0].jvp(x, state, tangent)

    def params(self) -> Params:
        """See :meth:`AbstractSession.params`."""
        return self._parts[0].params()

    def optimizer_state(self) -> Params:
        """See :meth:`AbstractSession.optimizer_state`."""
        return self._parts[0].optimizer_state()

    def close(self) -> None:
        """See :meth:`AbstractSession.close`."""
        for part in self._parts:
            part.close()


def _added(sums: jax.Array, worst: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the sum of the shares, and the worst residual, on every device."""
    return jax.lax.psum(sums[0], "shard"), jax.lax.pmax(worst[0], "shard")


def _added_in_pairs(n: int, sums: jax.Array, worst: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Do the same for 2^k devices, in k exchanges with another one each.

    Between processes on CPUs JAX's sum, a ring of Gloo's, takes eight times as long. All devices
    have the same bits afterwards, because a + b is b + a.
    """
    both = jnp.append(sums[0], worst)
    for k in range(n.bit_length() - 1):
        there = jax.lax.ppermute(both, "shard", [(i, i ^ 1 << k) for i in range(n)])
        both = jnp.append(both[:-1] + there[:-1], jnp.maximum(both[-1], there[-1]))
    return both[:-1], both[-1]
