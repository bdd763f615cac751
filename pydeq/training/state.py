"""What the epochs of a fit have come to: all that is needed to go on from there.

Every part is frozen and replaced as a whole: an interrupt finds no half of an epoch.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pydeq.engines import AbstractSession
from pydeq.model import Params
from pydeq.training.history import EpochRecord

__all__ = ["Average", "Moment", "Patience", "State"]


@dataclass(frozen=True)
class Moment:
    """Weights and optimiser state of one moment, on the host."""

    params: Params
    optimizer_state: Params

    @classmethod
    def of(cls, session: AbstractSession) -> "Moment":
        """Copy them out of a session."""
        return cls(session.params(), session.optimizer_state())

    def is_finite(self) -> bool:
        """Return whether training can go on from here."""
        arrays = (*self.params.values(), *self.optimizer_state.values())
        return all(np.isfinite(array).all() for array in arrays)


@dataclass(frozen=True)
class Average:
    """Moving average of the weights at the epochs' ends (Izmailov et al. 2018).

    The newest of k weighs the larger of `NEWEST` and 3 / (k + 2): the first epochs, in which the
    weights still go far, are soon forgotten. A constant learning rate keeps the weights moving
    about a better point than where the last batch left them.

    Attributes
    ----------
    count : int
        Epochs that are in it.
    mean : dict of str to ndarray
    """

    count: int = 0
    mean: Params = field(default_factory=dict)

    NEWEST = 1 / 3

    def including(self, params: Params) -> "Average":
        """Return the average with the weights of another epoch's end."""
        count = self.count + 1
        share = max(3 / (count + 2), self.NEWEST)
        old = self.mean or params
        mean = {
            name: old[name] + (value - old[name]) * value.dtype.type(share)
            for name, value in params.items()
        }
        return Average(count, mean)


@dataclass(frozen=True)
class Patience:
    """Counts epochs that improve by less than `tol`, as scikit-learn's MLP does.

    An epoch of a loss far above the best, on the way out of an overshoot of Adam's or back, is
    not counted: it is no sign that the loss has settled.

    Attributes
    ----------
    best : float
        The best value so far; more is better.
    n_stale : int
        Epochs since the last that improved.
    """

    best: float = -math.inf
    n_stale: int = 0

    def after(self, value: float | None, tol: float, n_batches: int) -> "Patience":
        """Return the patience after an epoch of this value.

        Parameters
        ----------
        value : float or None
        tol : float
        n_batches : int
            Batches whose mean loss a value is; 0: it is a score, and no epoch is left out.
        """
        value = math.nan if value is None else value
        # The loss of a single batch does not scatter; a mean over several does.
        far = {0: math.inf, 1: 1.25}.get(n_batches, 2.0)
        n_stale = self.n_stale
        if value >= self.best + tol:
            n_stale = 0
        elif not -value > far * abs(self.best) + tol:
            n_stale += 1
        return Patience(value if value > self.best else self.best, n_stale)


@dataclass(frozen=True)
class State:
    """A fit after some of its epochs.

    Attributes
    ----------
    now : Moment
        What the next epoch begins with.
    kept, best : Moment
        What the fit would end with; with what the epoch of the least loss began.
    kept_epoch, best_epoch : int
        The epochs that they are from, counted from 1; 0 is the start.
    records : tuple of EpochRecord
    patience : Patience
    average : Average
    rng_state : dict
        Of the generator that decides the order of the samples.
    stop_reason : str
        As in :class:`pydeq.History`.
    """

    now: Moment
    kept: Moment
    best: Moment
    rng_state: Any
    kept_epoch: int = 0
    best_epoch: int = 0
    records: tuple[EpochRecord, ...] = ()
    patience: Patience = Patience()
    average: Average = Average()
    stop_reason: str = ""

    @classmethod
    def first(cls, start: Moment, rng: np.random.Generator) -> "State":
        """Return the state before the first epoch."""
        return cls(start, start, start, rng.bit_generator.state)

    def ended(self, reason: str) -> "State":
        """Return the same, ended for a reason."""
        return dataclasses.replace(self, stop_reason=reason)
