"""The training data, and an epoch's batches of them on the device."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from pydeq.engines.jax.device import Device
from pydeq.engines.jax.programs import Program
from pydeq.model import RowReader, read_ahead

__all__ = ["Batch", "TrainingData", "batch_of", "padded"]

RESIDENT_ROWS, RESIDENT_BYTES = 10_000, 1 << 28
"""Data in memory of at least so many rows and at most so many bytes are kept on the device.

A batch is then a program's work and not the host's: a quarter of a millisecond of a step of five,
on MNIST. That program is compiled anew for each number of rows, which fewer do not pay back.
"""


class Batch(NamedTuple):
    """B samples; those of weight 0 (padding among them) take no part."""

    x: jax.Array  # (B, n_features)
    target: jax.Array  # (B, n_outputs), or (B,) int32: classes
    weight: jax.Array  # (B,)
    probe: jax.Array  # (n_state,)


class _Samples(NamedTuple):
    """The training data on the device; x in the dtype that it came in."""

    x: jax.Array
    target: jax.Array
    weight: jax.Array


def batch_of(
    x: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray,
    probe: np.ndarray,
    n_rows: int,
    device: Device,
) -> Batch:
    """Return samples on the device, in the dtype of `probe`, padded to `n_rows`."""
    rows: list[Any] = [
        padded(x, n_rows).astype(probe.dtype, copy=False),
        _as_target(padded(target, n_rows), probe.dtype),
        padded(weight, n_rows).astype(probe.dtype, copy=False),
        probe,
    ]
    x_there, target_there, weight_there, probe_there = jax.device_put(rows, device)
    return Batch(x_there, target_there, weight_there, probe_there)


def padded(rows: np.ndarray, n_rows: int) -> np.ndarray:
    """Return `rows` with zeros after them, `n_rows` in all, in C order."""
    if len(rows) == n_rows:
        return np.ascontiguousarray(rows)
    result = np.zeros((n_rows, *rows.shape[1:]), rows.dtype)
    result[: len(rows)] = rows
    return result


def _as_target(target: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return target.astype(np.int32 if target.ndim == 1 else dtype, copy=False)


@final
class TrainingData:
    """What a session trains on.

    Parameters
    ----------
    x : ndarray (n, n_features)
        Of any real dtype.
    target : ndarray (n, n_outputs), or (n,) of integers
    weight : ndarray (n,)
    device : jax.Device
    """

    def __init__(
        self, x: np.ndarray, target: np.ndarray, weight: np.ndarray, device: Device
    ) -> None:
        self._host = x, target, weight
        self._device = device
        self._resident: _Samples | None = None
        is_known = x.dtype.kind in "biuf" and x.dtype.itemsize <= 8
        in_memory = not isinstance(x, np.memmap)
        if in_memory and is_known and len(x) >= RESIDENT_ROWS and x.nbytes <= RESIDENT_BYTES:
            there: Any = (np.ascontiguousarray(x), _as_target(target, weight.dtype), weight)
            self._resident = _Samples(*jax.device_put(there, device))

    def batches(
        self, indices: Sequence[np.ndarray], n_rows: int, probes: np.ndarray
    ) -> Iterator[Batch]:
        """Yield the batches of an epoch, each padded to `n_rows`; from a file they are read ahead.

        Parameters
        ----------
        indices : sequence of ndarray of int
            The samples of each batch.
        n_rows : int
        probes : ndarray (n_batches, n_state)
            One for each; they have the dtype to work in.
        """
        if self._resident is None:
            gathered = self._gathered(indices)
            if isinstance(self._host[0], np.memmap):
                gathered = read_ahead(gathered)
            for (x, target, weight), probe in zip(gathered, probes, strict=True):
                yield batch_of(x, target, weight, probe, n_rows, self._device)
            return
        table = np.full((len(probes), n_rows), -1, np.int32)
        for row, index in zip(table, indices, strict=True):
            row[: len(index)] = index
        there: Any = jax.device_put((table, probes, np.zeros((), np.int32)), self._device)
        rows, signs, number = there
        take = _take.bind(str(probes.dtype), self._resident, rows, signs, number)
        for _ in range(len(probes)):
            x, target, weight, probe, number = take([*self._resident, rows, signs, number])
            yield Batch(x, target, weight, probe)

    def _gathered(
        self, indices: Sequence[np.ndarray]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield x, target and weight of each batch."""
        x, target, weight = (RowReader(array) for array in self._host)
        for index in indices:
            yield x(index), target(index), weight(index)


@Program
def _take(
    dtype: str, samples: _Samples, table: jax.Array, probes: jax.Array, number: jax.Array
) -> tuple[jax.Array, ...]:
    """Return the batch of that number in `dtype`, and the next number; -1 is padding."""
    rows, probe = table[number], probes[number]

    def take(array: jax.Array) -> jax.Array:
        return jnp.take(array, rows, axis=0, mode="clip")

    weight = jnp.where(rows < 0, 0, take(samples.weight))
    return take(samples.x).astype(dtype), take(samples.target), weight, probe, number + 1
