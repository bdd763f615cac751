"""The scale of a regression target: a model learns each output at mean 0 and spread 1."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["TargetScale"]

_WIDEST = 1e6


@dataclass(frozen=True)
class TargetScale:
    """Where each output lies, and how far it spreads; ``y = mean + scale * learned``.

    Attributes
    ----------
    mean : ndarray of float64 (n_outputs,)
    scale : ndarray of float64 (n_outputs,)
        Above 0.
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def none(cls, n_outputs: int) -> "TargetScale":
        """Return the scale of a target that is learned as it is."""
        return cls(np.zeros(n_outputs), np.ones(n_outputs))

    @classmethod
    def of(
        cls,
        blocks: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]],
        pool: Callable[[np.ndarray], list[np.ndarray]] = lambda array: [array],
    ) -> "TargetScale":
        """Return the weighted mean and standard deviation of each output.

        The scale of an output that is constant is its size, or 1 where it is 0. No sample is
        further than a million scales from the mean, however little it weighs.

        Parameters
        ----------
        blocks : callable
            Each call yields y, float64 ``(n, n_outputs)``, and the weights, ``(n,)`` above 0, block
            by block.
        pool : callable
            From an array to those of all processes that have blocks.
        """
        first = pool(next(blocks())[0][0])[0]
        size, heaviest, constant = np.zeros(len(first)), 0.0, np.ones(len(first), bool)
        for y, weight in blocks():
            size = np.maximum(size, np.abs(y).max(axis=0))
            heaviest = max(heaviest, weight.max())
            constant &= (y == first).all(axis=0)
        size, heaviest = np.max(pool(size), axis=0), np.max(pool(np.array(heaviest)))
        constant = np.all(pool(constant), axis=0)
        size[size == 0] = 1.0
        # In units of the largest value nothing overflows, whatever the target.
        total, mean = 0.0, np.zeros(len(first))
        for y, weight in blocks():
            share = weight / heaviest
            total += share.sum()
            mean += share @ (y / size)
        total = np.sum(pool(np.array(total)))
        mean = np.sum(pool(mean), axis=0) / total
        spread, widest = np.zeros(len(first)), np.zeros(len(first))
        for y, weight in blocks():
            away = y / size - mean
            spread += weight / heaviest @ away**2
            widest = np.maximum(widest, np.abs(away).max(axis=0))
        spread, widest = np.sum(pool(spread), axis=0), np.max(pool(widest), axis=0)
        spread = np.maximum(np.sqrt(spread / total), widest / _WIDEST)
        spread[constant] = 1.0
        mean[constant] = (first / size)[constant]
        # Next to the smallest number that is not 0, a spread may round to 0.
        scale = np.maximum(spread * size, np.finfo(np.float64).tiny)
        return cls(mean * size, scale)

    def apply(self, y: np.ndarray) -> np.ndarray:
        """Return the target to be learned, float64 ``(n, n_outputs)``."""
        # Halves: the difference of two finite numbers is finite.
        return (y / 2 - self.mean / 2) / self.scale * 2

    def undo(self, learned: np.ndarray) -> np.ndarray:
        """Return what was learned in the units of y, in the dtype of `learned`."""
        with np.errstate(over="ignore", invalid="ignore"):
            return (learned * self.scale + self.mean).astype(learned.dtype)
