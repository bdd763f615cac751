"""The order in which samples are seen, from numpy generators: the same for every engine."""

from collections.abc import Iterator

import numpy as np

__all__ = ["chunks", "epoch_order", "iter_batches", "iter_blocks", "padded_size", "probes"]

STEP, SMALL, CHUNK = 50, 200, 1000
"""Rows: what small batches are a multiple of; what a small one is; the most of a prediction's.

`SMALL` is the estimators' default of `batch_size`, so that a fit's search serves predictions.
"""

BLOCK_BYTES, BLOCK_ROWS = 16 << 20, 16_000
"""The most that is converted and checked at once."""


def epoch_order(n: int, shuffle: bool, rng: np.random.Generator) -> np.ndarray:
    """Return the sample indices of one epoch, ``(n,)`` of int32 or, if need be, int64."""
    order = np.arange(n, dtype=np.int32 if n <= np.iinfo(np.int32).max else np.int64)
    if shuffle:
        rng.shuffle(order)  # in place, and as rng.permutation(n)
    return order


def iter_batches(order: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yield consecutive runs of `order` of length `batch_size`; the last may be shorter."""
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def iter_blocks(n: int, row_bytes: int) -> Iterator[slice]:
    """Yield slices of `n` rows, in order, each of about 16 MiB and at most 16,000 rows.

    Large blocks are multiples of 1000 rows, which engines compile for.
    """
    size = min(max(1, BLOCK_BYTES // max(row_bytes, 1)), BLOCK_ROWS)
    if size > CHUNK:
        size -= size % CHUNK
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def probes(seed: int, epoch: int, n_batches: int, n_state: int, dtype: np.dtype) -> np.ndarray:
    """Return the Rademacher probes of one epoch's Jacobian penalty, ``(n_batches, n_state)``.

    One probe serves all samples of its batch (Hutchinson's estimator is unbiased for each).
    """
    rng = np.random.default_rng([seed, epoch])
    return rng.choice(np.array([-1.0, 1.0]), size=(n_batches, n_state)).astype(dtype)


def padded_size(n: int) -> int:
    """Return the number of rows that a batch of `n` samples is padded to.

    An engine that compiles for every shape then compiles for few: multiples of 50 up to 200, of 200
    up to 2000, and above that at most eight sizes an octave.
    """
    step = STEP if n <= SMALL else max(SMALL, 1 << (n - 1).bit_length() - 4)
    return max(-(-n // step), 1) * step


def chunks(n: int) -> Iterator[tuple[int, int, int]]:
    """Yield first and last index, and rows to pad to, of the pieces in which `n` are predicted.

    Up to a chunk goes in small ones, and so does the end of more if it is up to half a chunk: there
    are five sizes in all, and no job needs more than two.
    """
    first, small = 0, padded_size(min(n, SMALL))
    while first < n:
        rows = CHUNK if n > CHUNK and n - first > CHUNK // 2 else small
        yield first, min(first + rows, n), rows
        first += rows
