"""The epoch loop: patience, early stopping, checkpoints and progress, for any engine's session."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from pydeq.engines import AbstractSession, OnBatch, gather_arrays
from pydeq.model import RowReader, TrainSpec, iter_blocks
from pydeq.training.history import EpochRecord, History
from pydeq.training.progress import Progress
from pydeq.training.state import Moment, Patience, State
from pydeq.training.team import Team

__all__ = ["AfterEpoch", "Data", "TrainResult", "Validation", "split", "train"]

AfterEpoch = Callable[[State, bool], None]
"""Is told the state at the start and after each epoch; and whether it is the last, of all or
before Ctrl-C."""


@dataclass(frozen=True)
class Data:
    """Samples as an engine takes them; `x` as users gave it, else of the model's dtype.

    Any of the arrays may be a memory-mapped file.

    Attributes
    ----------
    x : ndarray (n, n_features)
    target : ndarray (n, n_outputs) or, of int32, (n,)
        Values, or indices of classes.
    weight : ndarray (n,)
    index : ndarray of int or None
        Those of the n samples that are meant; None: all.
    """

    x: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    index: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.x if self.index is None else self.index)

    def at(self, index: np.ndarray) -> "Data":
        """Return the samples at `index`, integers, of those that are meant; nothing is copied."""
        if self.index is not None:
            index = self.index[index]
        return Data(self.x, self.target, self.weight, index)

    def targets(self) -> np.ndarray:
        """Return the target of the samples that are meant."""
        return self.target if self.index is None else self.target[self.index]

    def weights(self) -> np.ndarray:
        """Return the weight of the samples that are meant."""
        return self.weight if self.index is None else self.weight[self.index]

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield x of the samples that are meant, block by block."""
        reader, index = RowReader(self.x), self.index
        for rows in iter_blocks(len(self), self.x.dtype.itemsize * self.x.shape[1]):
            yield reader(rows if index is None else index[rows])


@dataclass(frozen=True)
class Validation:
    """Samples held out, and how well an output fits them: more is better.

    ``score(output, target, weight)`` of NaN counts as no improvement.
    """

    data: Data
    score: Callable[[np.ndarray, np.ndarray, np.ndarray], float]

    def of(self, session: AbstractSession, team: Team) -> float:
        """Return the score of a session's weights; each process solves for its share."""
        own = self.data
        if team.group.size > 1:
            own = own.at(team.own(np.arange(len(own))))
        outputs = [session.equilibrium(x).output for x in own.blocks()]
        of_all = (
            np.concatenate(gather_arrays(team.group, part))
            for part in (np.concatenate(outputs), own.targets(), own.weights())
        )
        return self.score(*of_all)


@dataclass(frozen=True)
class TrainResult:
    """What a fit came to.

    Attributes
    ----------
    history : History
        One record for every epoch that ended.
    kept : Moment
        What to go on with: with early stopping that of the best validation score. Else that of the
        last epoch after which all is finite, or, where ``"tol"`` ended the fit at a loss that is
        not the least, that with which the epoch of the least loss began; its weights averaged with
        those before if ``spec.average``.
    kept_epoch : int
        The epoch that `kept` is from, counted from 1; 0 is the start.
    """

    history: History
    kept: Moment
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
    state: State | None = None,
    after_epoch: AfterEpoch | None = None,
    team: Team | None = None,
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
    state : State, optional
        Of a fit that was cut off, to go on from; the session has its weights and its epoch.
    after_epoch : callable, optional
        See `AfterEpoch`.
    team : Team, optional
        The processes that train together; None: this one alone.
    """
    team = team or Team(len(data))
    n_batches = -(-team.n_samples // spec.batch_size)
    session.load_data(data.x, data.target, data.weight)
    state = state or State.first(Moment.of(session), rng)
    rng.bit_generator.state = state.rng_state
    tell = after_epoch or (lambda *_: None)
    with Progress(spec.max_iter, n_batches, verbose, len(state.records)) as progress:
        try:
            tell(state, False)
            while not state.stop_reason:
                order, size = team.order(len(data), spec, rng)
                if data.index is not None:
                    order = data.index[order]
                record, moment = _epoch(session, order, size, validation, progress.on_batch, team)
                state = _after(state, record, moment, rng, spec, validation, team.n_samples)
                progress.on_epoch(record)
                tell(state, bool(state.stop_reason))
        except KeyboardInterrupt:
            if not state.records:
                raise
            rng.bit_generator.state = state.rng_state
            tell(state, True)
            state = state.ended("interrupted")
    history = History(list(state.records), state.stop_reason)
    return TrainResult(history, state.kept, state.kept_epoch)


def _after(
    state: State,
    record: EpochRecord,
    moment: Moment,
    rng: np.random.Generator,
    spec: TrainSpec,
    validation: Validation | None,
    n_samples: int,
) -> State:
    """Return the state after an epoch that ended with `moment`."""
    state = dataclasses.replace(
        state, records=(*state.records, record), rng_state=rng.bit_generator.state
    )
    if reason := _failure(record, moment, n_samples):
        return state.ended(reason)
    is_score = validation is not None
    value = record.validation_score if is_score else -record.loss
    n_batches = 0 if is_score else -(-n_samples // spec.batch_size)
    patience = state.patience.after(value, spec.tol, n_batches)
    if len(state.records) <= spec.fixed_depth_epochs and not is_score:
        patience = state.patience  # the loss of another model
    is_best = patience.best > state.patience.best
    if is_best:
        state = dataclasses.replace(state, best=state.kept, best_epoch=state.kept_epoch)
    state = dataclasses.replace(state, now=moment, patience=patience)
    if not is_score or is_best:
        state = _keeping(state, spec.average and not is_score)
    reason = _end(len(state.records), patience, spec)
    if reason == "tol" and not is_score and not is_best:
        state = dataclasses.replace(state, kept=state.best, kept_epoch=state.best_epoch)
    return state.ended(reason)


def _keeping(state: State, average: bool) -> State:
    """Return the state with its last epoch kept, averaged with those before if so asked."""
    kept, mean = state.now, state.average
    if average:
        mean = mean.including(kept.params)
        kept = Moment(mean.mean, kept.optimizer_state)
    n_epochs = len(state.records)
    return dataclasses.replace(state, kept=kept, kept_epoch=n_epochs, average=mean)


def _epoch(
    session: AbstractSession,
    order: np.ndarray,
    batch_size: int,
    validation: Validation | None,
    on_batch: OnBatch,
    team: Team,
) -> tuple[EpochRecord, Moment]:
    start = time.perf_counter()
    report = session.train_epoch(order, batch_size, on_batch)
    moment = Moment.of(session)
    score = None
    if validation is not None:
        score = validation.of(session, team)
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
    return record, moment


def _failure(record: EpochRecord, moment: Moment, n: int) -> str:
    """Return why training cannot go on after this epoch, or nothing."""
    if not moment.is_finite():
        return "diverged"
    if math.isfinite(record.loss):
        return ""
    return "no_equilibrium" if record.n_failed == n else "diverged"


def _end(n_epochs: int, patience: Patience, spec: TrainSpec) -> str:
    """Return why a healthy training ends after this epoch, or nothing."""
    if patience.n_stale > spec.n_iter_no_change:
        return "tol"
    return "max_iter" if n_epochs == spec.max_iter else ""
