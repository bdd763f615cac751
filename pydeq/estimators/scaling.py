"""The scale of a regression target: a model learns each output at mean 0 and spread 1."""

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
    def of(cls, y: np.ndarray, weight: np.ndarray) -> "TargetScale":
        """Return the weighted mean and standard deviation of each output.

        The scale of an output that is constant is its size, or 1 where it is 0. No sample is
        further than a million scales from the mean, however little it weighs.

        Parameters
        ----------
        y : ndarray of float64 (n, n_outputs)
        weight : ndarray (n,)
            Above 0.
        """
        size = np.abs(y).max(axis=0)
        size[size == 0] = 1.0
        share = weight / weight.max()
        # In units of the largest value nothing overflows, whatever the target.
        unit = y / size
        mean = np.average(unit, axis=0, weights=share)
        spread = np.sqrt(np.average((unit - mean) ** 2, axis=0, weights=share))
        spread = np.maximum(spread, np.abs(unit - mean).max(axis=0) / _WIDEST)
        constant = (y == y[0]).all(axis=0)
        spread[constant] = 1.0
        mean[constant] = unit[0, constant]
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
