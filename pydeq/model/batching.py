"""The order in which samples are seen, from numpy generators: the same for every engine."""

from collections.abc import Iterator

import numpy as np

__all__ = ["epoch_order", "iter_batches", "padded_size", "probes"]


def epoch_order(n: int, shuffle: bool, rng: np.random.Generator) -> np.ndarray:
    """Return the sample indices of one epoch, int64 ``(n,)``."""
    return rng.permutation(n) if shuffle else np.arange(n)


def iter_batches(order: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yield consecutive runs of `order` of length `batch_size`; the last may be shorter."""
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def probes(seed: int, epoch: int, n_batches: int, n_state: int, dtype: np.dtype) -> np.ndarray:
    """Return the Rademacher probes of one epoch's Jacobian penalty, ``(n_batches, n_state)``.

    One probe serves all samples of its batch (Hutchinson's estimator is unbiased for each).
    """
    rng = np.random.default_rng([seed, epoch])
    return rng.choice(np.array([-1.0, 1.0]), size=(n_batches, n_state)).astype(dtype)


def padded_size(n: int) -> int:
    """Return the number of rows that `n` samples are padded to: a multiple of 8.

    An engine that compiles for every shape then compiles for few: at most eight sizes an octave,
    for at most an eighth more rows above 64.
    """
    step = max(8, 1 << max(0, (n - 1).bit_length() - 4))
    return -(-n // step) * step
