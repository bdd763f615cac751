"""Checkpoints of a fit: when they are written, and whether a fit may go on from one."""

import hashlib
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pydeq.engines import AbstractGroup, gather_json
from pydeq.estimators import checkpoint_file, parameters
from pydeq.estimators.checkpoint_file import DamagedError, Saved
from pydeq.estimators.rows import read_blocks, row_bytes
from pydeq.estimators.stored import plain_parameters
from pydeq.training import Data, Start, State

__all__ = ["Checkpoint", "Keeper", "digest", "identity"]

_NAMES = "epoch-*.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Where a fit keeps its state, and how often; see :meth:`pydeq.DEQClassifier.fit`.

    Parameters
    ----------
    folder : str or path-like
        Made where it is not there. One fit has it for itself.
    every_epochs : int, optional
        Write after so many epochs.
    every_minutes : float or None, default=1.0
        Write after so many minutes, at the end of an epoch. With `every_epochs`, what comes first
        counts.
    keep : int, default=2
        How many of the newest are kept.

    Raises
    ------
    ValueError
        If a value cannot be used.

    Examples
    --------
    >>> import pydeq
    >>> pydeq.Checkpoint("digits", every_epochs=5).keep
    2
    """

    folder: str | os.PathLike[str]
    every_epochs: int | None = None
    every_minutes: float | None = 1.0
    keep: int = 2

    def __post_init__(self) -> None:
        parameters.check_checkpoint(vars(self))


class Keeper:
    """The checkpoints of one fit, in one folder.

    Parameters
    ----------
    checkpoint : str, path-like or Checkpoint
    identity : dict
        See :class:`pydeq.estimators.checkpoint_file.Saved`; a dict inside it is compared by name.
    start : Start
        Where the fit sets out from if it is a new one.
    writes : bool
        False: another process of the fit writes.

    Attributes
    ----------
    state : State or None
        What to go on from; None: there is no checkpoint.
    start : Start
        Where the fit set out from.

    Raises
    ------
    OSError
        If the folder cannot be written to.
    ValueError
        If its checkpoints are of another fit, or of another version of the format.
    """

    def __init__(
        self, checkpoint: Any, identity: dict[str, Any], start: Start, writes: bool = True
    ) -> None:
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint(checkpoint)
        self._how = checkpoint
        self._folder = Path(os.fsdecode(checkpoint.folder))
        self._identity = identity
        self._writes = writes
        self._folder.mkdir(parents=True, exist_ok=True)
        self._start_rng: Any = start.rng.bit_generator.state
        self._written: int | None = None
        self._time = time.monotonic()
        self.start, self.state = start, None
        saved = self._newest()
        if saved is None:
            return
        _check_same(self._folder, saved.identity, identity)
        # With random_state=None the draws of the fit that was cut off are the ones that count.
        start.rng.bit_generator.state = self._start_rng = saved.start_rng
        now = saved.state.now
        self.start = Start(now.params, now.optimizer_state, start.rng, saved.seed)
        self.state, self._written = saved.state, len(saved.state.records)

    @property
    def n_epochs(self) -> int:
        """Epochs that were done before."""
        return 0 if self.state is None else len(self.state.records)

    def _paths(self) -> list[Path]:
        """Return the checkpoints, the newest first."""
        return sorted(self._folder.glob(_NAMES), reverse=True)

    def _newest(self) -> Saved | None:
        """Return the newest checkpoint that is whole."""
        paths = self._paths()
        for i, path in enumerate(paths):
            try:
                return checkpoint_file.read(path)
            except DamagedError as error:
                then = "the one before is taken" if i + 1 < len(paths) else "the fit starts anew"
                _warn(f"The checkpoint {path} is damaged: {error}; {then}.")
        return None

    def after_epoch(self, state: State, is_last: bool) -> None:
        """Write a checkpoint where one is due; a disk that is full does not end the fit.

        That of the start is always due, and must succeed: a folder that cannot be written to is
        known before the work.
        """
        n_epochs = len(state.records)
        if not self._writes:
            return
        if self._written is None:
            self._write(state)
            return
        if n_epochs == self._written or not (is_last or self._is_due(n_epochs - self._written)):
            return
        try:
            self._write(state)
        except OSError as error:
            _warn(
                f"The checkpoint of epoch {n_epochs} could not be written to {self._folder} "
                f"({error}). The fit goes on; that of epoch {self._written} is the newest."
            )
        self._time = time.monotonic()

    def _is_due(self, n_epochs: int) -> bool:
        """Return whether so many epochs since the last checkpoint, or the time, call for one."""
        how, minutes = self._how, (time.monotonic() - self._time) / 60
        by_epochs = how.every_epochs is not None and n_epochs >= how.every_epochs
        return by_epochs or (how.every_minutes is not None and minutes >= how.every_minutes)

    def _write(self, state: State) -> None:
        n_epochs = len(state.records)
        path = self._folder / _NAMES.replace("*", f"{n_epochs:010d}")
        saved = Saved(self._identity, self._start_rng, self.start.seed, state)
        checkpoint_file.write(path, saved)
        _settle(self._folder)
        self._written = n_epochs
        for old in self._paths()[self._how.keep :]:
            old.unlink(missing_ok=True)


def _settle(folder: Path) -> None:
    """Have a new name on the disk before old ones go, where the system can say so."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _check_same(folder: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise ValueError where the checkpoints are of another fit."""
    if differences := list(_differences(saved, asked)):
        raise ValueError(
            f"The checkpoints in {folder} are of another fit: {'; '.join(differences)}. Give the "
            "data and parameters that it began with, or another folder."
        )


def _differences(
    saved: Mapping[str, Any], asked: Mapping[str, Any], is_data: bool = False
) -> Iterator[str]:
    for name in dict.fromkeys((*saved, *asked)):
        before, now = saved.get(name), asked.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, name == "data")
        elif before != now:
            yield f"{name} differs" if is_data else f"{name} was {before!r} and is now {now!r}"


def identity(
    params: Mapping[str, Any],
    data: Data,
    meaning: Any,
    start: Start,
    resume: bool,
    group: AbstractGroup,
) -> dict[str, Any]:
    """Return what two fits have in common where one may go on from the other's checkpoint.

    Parameters
    ----------
    params : dict
        The estimator's, with the name of the engine that was chosen.
    data : Data
    meaning : object
        What, beside ``data.target``, y is known by; JSON can hold it.
    start : Start
    resume : bool
        Whether the weights of `start` are those of a fit before.
    group : AbstractGroup
        The processes of the fit.
    """
    values = {name: value for name, value in params.items() if name != "verbose"}
    if isinstance(values["random_state"], np.random.RandomState):
        values["random_state"] = f"a RandomState that draws {start.seed}"
    own = {"X": digest(data.x), "y": digest(data.target), "sample_weight": digest(data.weight)}
    of_all = gather_json(group, own)
    digests: dict[str, Any] = {name: [found[name] for found in of_all] for name in own}
    digests["y"].append(meaning)
    return {
        "number of processes": group.size,
        "data": digests,
        "parameters": plain_parameters(values),
        "weights to start from": [digest(v) for v in start.params.values()] if resume else "fresh",
    }


def digest(rows: np.ndarray) -> str:
    """Return a digest of an array's shape, dtype and values, read block by block."""
    found = hashlib.blake2b(f"{rows.dtype} {rows.shape}".encode(), digest_size=16)
    for part in read_blocks(rows, row_bytes(rows)):
        # What is no number has no bytes of its own.
        content = repr(part.tolist()).encode() if part.dtype.hasobject else part.tobytes()
        found.update(content)
    return found.hexdigest()


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=2)
