"""A checkpoint: the state of a fit to one file and back, whole or known to be damaged.

The file is in the safetensors format. Its metadata have a JSON object, ``checkpoint``, and the
SHA-256 of that text and of all arrays. Nothing in the file is run.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from pydeq.estimators.whole_file import write_whole
from pydeq.model import Params
from pydeq.training import Average, History, Moment, Patience, State

__all__ = ["FORMAT", "DamagedError", "Saved", "read", "write"]

FORMAT = 1
"""Version of the file format; a fit does not go on from another one."""

_MOMENTS = ("now", "kept", "best")


class DamagedError(Exception):
    """A file that is not a whole checkpoint; the message says what is wrong with it."""


class Saved(NamedTuple):
    """What a checkpoint has.

    Attributes
    ----------
    identity : dict
        What a fit must have in common with the one that wrote it; values that JSON can hold.
    start_rng : dict
        State of the generator after the starting weights were drawn.
    seed : int
        Of the Jacobian penalty's probes.
    state : State
    """

    identity: dict[str, Any]
    start_rng: dict[str, Any]
    seed: int
    state: State


def write(path: Path, saved: Saved) -> None:
    """Write a checkpoint, whole or not at all.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    state = saved.state
    arrays: Params = {}
    written_as: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, value in _named(state):
        # Moments share arrays: each is written once.
        written_as[name] = first.setdefault(id(value), name)
        if written_as[name] == name:
            arrays[name] = np.array(value, order="C")
    text = json.dumps(
        {
            "format": FORMAT,
            "identity": saved.identity,
            "start_rng": saved.start_rng,
            "seed": saved.seed,
            "rng": state.rng_state,
            "epochs": {"kept": state.kept_epoch, "best": state.best_epoch},
            "history": dataclasses.asdict(History(list(state.records), state.stop_reason)),
            "patience": dataclasses.asdict(state.patience),
            "n_averaged": state.average.count,
            "arrays": written_as,
        }
    )
    digest = _digest(text, arrays)
    write_whole(path, to_bytes(arrays, {"checkpoint": text, "sha256": digest}))


def _named(state: State) -> Iterator[tuple[str, np.ndarray]]:
    """Yield all arrays of a state by name, in an order of its own."""
    for moment in _MOMENTS:
        at: Moment = getattr(state, moment)
        yield from ((f"{moment}/params/{name}", value) for name, value in at.params.items())
        yield from ((f"{moment}/optimizer/{n}", value) for n, value in at.optimizer_state.items())
    yield from ((f"mean/{name}", value) for name, value in state.average.mean.items())


def _digest(text: str, arrays: Params) -> str:
    found = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        value = arrays[name]
        found.update(f"\n{name} {value.dtype} {value.shape} ".encode())
        found.update(value.tobytes())
    return found.hexdigest()


def read(path: Path) -> Saved:
    """Return what `write` wrote.

    Raises
    ------
    DamagedError
        If the file is not whole, or is no checkpoint.
    ValueError
        If it is one of another version of the format.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, OverflowError, TypeError, ValueError) as error:
        raise DamagedError(f"it is not a whole file ({error})") from error
    text = metadata.get("checkpoint", "")
    if metadata.get("sha256") != _digest(text, arrays):
        raise DamagedError("its content is not what was written")
    fields = json.loads(text)
    if fields["format"] != FORMAT:
        from pydeq import __version__

        raise ValueError(
            f"{path} is a checkpoint in format {fields['format']}; pydeq {__version__} goes on "
            f"from format {FORMAT}. Take the pydeq that wrote it, or another folder."
        )
    return _restored(fields, arrays)


def _restored(fields: dict[str, Any], arrays: Params) -> Saved:
    def group(prefix: str) -> Params:
        names = {n: at for n, at in fields["arrays"].items() if n.startswith(prefix)}
        return {name.removeprefix(prefix): arrays[at] for name, at in names.items()}

    now, kept, best = (
        Moment(group(f"{name}/params/"), group(f"{name}/optimizer/")) for name in _MOMENTS
    )
    history = History.from_dict(fields["history"])
    state = State(
        now=now,
        kept=kept,
        best=best,
        rng_state=fields["rng"],
        kept_epoch=fields["epochs"]["kept"],
        best_epoch=fields["epochs"]["best"],
        records=tuple(history.records),
        patience=Patience(**fields["patience"]),
        average=Average(fields["n_averaged"], group("mean/")),
        stop_reason=history.stop_reason,
    )
    return Saved(fields["identity"], fields["start_rng"], fields["seed"], state)
