"""The epoch loop: patience, early stopping, checkpoints and progress, for any engine's session."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split

from pydeq.engines import AbstractSession, OnBatch
from pydeq.model import Params, TrainSpec, epoch_order
from pydeq.training.history import EpochRecord, History
from pydeq.training.progress import Progress

__all__ = ["Average", "Checkpoint", "Data", "TrainResult", "Validation", "split", "train"]


@dataclass(frozen=True)
class Data:
    """Samples as an engine takes them; `x` as users gave it, else of the model's dtype.

    Attributes
    ----------
    x : ndarray (n, n_features)
    target : ndarray (n, n_outputs) or, of int32, (n,)
        Values, or indices of classes.
    weight : ndarray (n,)
    """

    x: np.ndarray
    target: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def at(self, index: np.ndarray) -> "Data":
        """Return the samples at `index` (integers, or a boolean mask)."""
        return Data(self.x[index], self.target[index], self.weight[index])


@dataclass(frozen=True)
class Validation:
    """Samples held out, and how well an output fits them: ``score(output, data)``, more is better.

    A score of NaN counts as no improvement.
    """

    data: Data
    score: Callable[[np.ndarray, Data], float]


@dataclass(frozen=True)
class Checkpoint:
    """Weights and optimiser state of one moment, on the host."""

    params: Params
    optimizer_state: Params

    @classmethod
    def of(cls, session: AbstractSession) -> "Checkpoint":
        """Copy them out of a session."""
        return cls(session.params(), session.optimizer_state())

    def is_finite(self) -> bool:
        """Return whether training can go on from here."""
        arrays = (*self.params.values(), *self.optimizer_state.values())
        return all(np.isfinite(array).all() for array in arrays)


@dataclass(frozen=True)
class TrainResult:
    """What a fit came to.

    Attributes
    ----------
    history : History
        One record for every epoch that ended.
    kept : Checkpoint
        What to go on with: with early stopping that of the best validation score. Else that of the
        last epoch after which all is finite, or, where ``"tol"`` ended the fit at a loss that is
        not the least, that with which the epoch of the least loss began; its weights averaged with
        those before if ``spec.average``.
    kept_epoch : int
        The epoch that `kept` is from, counted from 1; 0 is the start.
    """

    history: History
    kept: Checkpoint
    kept_epoch: int


def split(
    data: Data, fraction: float, stratum: np.ndarray | None, rng: np.random.Generator
) -> tuple[Data, Data]:
    """Return the samples to train on, and a `fraction` of all to hold out.

    With `stratum` ``(n,)``, integers, each of its values keeps its share in both.
    """
    n_held = math.ceil(fraction * len(data))
    if n_held < 2:
        raise ValueError(
            f"early_stopping=True holds out validation_fraction={fraction:g} of {len(data)} "
            f"samples, which is {n_held}; at least 2 are needed."
        )
    if stratum is not None:
        _check_shares(stratum, n_held)
    seed = int(rng.integers(2**31))
    parts: Any = train_test_split(
        np.arange(len(data)), test_size=n_held, stratify=stratum, random_state=seed
    )
    kept, held = parts
    return data.at(kept), data.at(held)


def _check_shares(stratum: np.ndarray, n_held: int) -> None:
    """Raise ValueError where a class cannot be in both parts."""
    _, counts = np.unique(stratum, return_counts=True)
    if counts.min() < 2:
        raise ValueError(
            "early_stopping=True holds out a share of every class, which needs at least 2 samples "
            f"of each; {(counts < 2).sum()} of {len(counts)} classes have 1. Leave them out, or "
            "set early_stopping=False."
        )
    least = min(n_held, len(stratum) - n_held)
    if least < len(counts):
        raise ValueError(
            f"early_stopping=True holds out {n_held} of {len(stratum)} samples, and each part "
            f"needs one of each of the {len(counts)} classes; one part has {least}. Change "
            "validation_fraction."
        )


def train(
    session: AbstractSession,
    data: Data,
    rng: np.random.Generator,
    spec: TrainSpec,
    validation: Validation | None = None,
    verbose: bool = False,
) -> TrainResult:
    """Train until `spec` or one of these ends it; ``history.stop_reason`` tells which.

    * ``"diverged"``: after the epoch the loss, a weight or the optimiser's state is not finite.
      Its record is kept, its weights are not.
    * ``"no_equilibrium"``: every sample of the epoch failed. Then no step was taken, and every
      later epoch would fail alike.
    * ``"interrupted"``: KeyboardInterrupt. The epoch that it cut off has no record and no effect,
      on `rng` neither. Before the end of the first epoch it is raised.

    Parameters
    ----------
    session : AbstractSession
        Holds the weights to start from; its data are replaced by `data`.
    data : Data
    rng : numpy.random.Generator
        Decides the order of the samples, and nothing else.
    spec : TrainSpec
    validation : Validation, optional
        Its score then decides, instead of the loss, when to stop and which weights to keep.
    verbose : bool
        Show a progress bar.
    """
    n_batches = -(-len(data) // spec.batch_size)
    patience = _Patience(spec.tol, n_batches if validation is None else 0)
    average = Average(spec.average and validation is None)
    session.load_data(data.x, data.target, data.weight)
    # Replaced as a whole: an interrupt finds no half of an epoch.
    records: list[EpochRecord] = []
    best = Checkpoint.of(session), 0
    done = _Done(0, "", *best, rng.bit_generator.state)
    with Progress(spec.max_iter, n_batches, verbose) as progress:
        try:
            while not done.stop_reason:
                order = epoch_order(len(data), spec.shuffle, rng)
                record, checkpoint = _epoch(session, order, spec, validation, progress.on_batch)
                records.append(record)
                reason = _failure(record, checkpoint, len(data))
                kept = done.kept, done.kept_epoch
                if not reason:
                    value = -record.loss if validation is None else record.validation_score
                    is_best = patience.improves(value)
                    if is_best:
                        best = kept
                    if is_best or validation is None:
                        kept = average.including(checkpoint), len(records)
                    reason = _end(len(records), patience, spec)
                    if reason == "tol" and validation is None and not is_best:
                        kept = best
                done = _Done(len(records), reason, *kept, rng.bit_generator.state)
                progress.on_epoch(record)
        except KeyboardInterrupt:
            if not done.n_epochs:
                raise
            rng.bit_generator.state = done.rng_state
            done = done._replace(stop_reason="interrupted")
    history = History(records[: done.n_epochs], done.stop_reason)
    return TrainResult(history, done.kept, done.kept_epoch)


class _Done(NamedTuple):
    """What the epochs that ended came to."""

    n_epochs: int
    stop_reason: str
    kept: Checkpoint
    kept_epoch: int
    rng_state: Any


def _epoch(
    session: AbstractSession,
    order: np.ndarray,
    spec: TrainSpec,
    validation: Validation | None,
    on_batch: OnBatch,
) -> tuple[EpochRecord, Checkpoint]:
    start = time.perf_counter()
    report = session.train_epoch(order, spec.batch_size, on_batch)
    checkpoint = Checkpoint.of(session)
    score = None
    if validation is not None:
        output = session.equilibrium(validation.data.x).output
        score = validation.score(output, validation.data)
    seconds = time.perf_counter() - start
    record = EpochRecord(
        loss=report.loss,
        grad_norm=report.grad_norm,
        n_evals=report.n_evals,
        worst_residual=report.worst_residual,
        n_failed=report.n_failed,
        seconds=seconds,
        validation_score=score,
    )
    return record, checkpoint


def _failure(record: EpochRecord, checkpoint: Checkpoint, n: int) -> str:
    """Return why training cannot go on after this epoch, or nothing."""
    if not checkpoint.is_finite():
        return "diverged"
    if math.isfinite(record.loss):
        return ""
    return "no_equilibrium" if record.n_failed == n else "diverged"


def _end(n_epochs: int, patience: "_Patience", spec: TrainSpec) -> str:
    """Return why a healthy training ends after this epoch, or nothing."""
    if patience.n_stale > spec.n_iter_no_change:
        return "tol"
    return "max_iter" if n_epochs == spec.max_iter else ""


class Average:
    """Moving average of the weights at the epochs' ends (Izmailov et al. 2018), if it is `on`.

    The newest weighs `NEWEST`, or what makes it a plain mean in the first epochs. A constant
    learning rate keeps the weights moving about a better point than where the last batch left
    them.
    """

    NEWEST = 1 / 3

    def __init__(self, on: bool) -> None:
        self._on = on
        self._count = 0
        self._mean: Params = {}

    def including(self, new: Checkpoint) -> Checkpoint:
        """Take in an epoch's end; return it with the averaged weights."""
        if not self._on:
            return new
        self._count += 1
        share = max(1 / self._count, self.NEWEST)
        old = self._mean or new.params
        self._mean = {
            name: old[name] + (value - old[name]) * value.dtype.type(share)
            for name, value in new.params.items()
        }
        return Checkpoint(self._mean, new.optimizer_state)


class _Patience:
    """Counts epochs that improve by less than `tol`, as scikit-learn's MLP does.

    An epoch of a loss far above the best, on the way out of an overshoot of Adam's or back, is
    not counted: it is no sign that the loss has settled.

    Parameters
    ----------
    tol : float
    n_batches : int
        Batches whose mean loss a value is; 0: it is a score, and no epoch is left out.
    """

    def __init__(self, tol: float, n_batches: int) -> None:
        self._tol = tol
        # The loss of a single batch does not scatter; a mean over several does.
        self._far = {0: math.inf, 1: 1.25}.get(n_batches, 2.0)
        self._best = -math.inf
        self.n_stale = 0

    def improves(self, value: float | None) -> bool:
        """Count an epoch; return whether its value (more is better) is the best so far."""
        value = math.nan if value is None else value
        if value >= self._best + self._tol:
            self.n_stale = 0
        elif not -value > self._far * abs(self._best) + self._tol:
            self.n_stale += 1
        is_best = value > self._best
        if is_best:
            self._best = value
        return is_best
