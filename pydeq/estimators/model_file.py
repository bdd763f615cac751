"""A model file: a header that JSON can hold, and named arrays, to one file and back.

The file is in the safetensors format: the header's metadata has one entry, ``pydeq``, a JSON
object. Nothing in the file is run.
"""

import json
import os
import reprlib
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from pydeq.errors import ModelFileError
from pydeq.estimators.whole_file import kind_of_file, write_whole

__all__ = ["FORMAT", "PathName", "not_a_model", "read", "write"]

FORMAT = 1
"""Version of the file format; a file of a newer one is refused."""

MAX_HEADER = 50_000_000
"""Characters that the header may have; safetensors reads no more than 100 MB of it, escaped."""

Arrays = dict[str, np.ndarray]
PathName = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_DTYPES = {"F32", "F64", "I64"}
_REASON = 500
"""Characters of a reason that are shown: what a file has in it may be long."""


def write(path: PathName, header: Mapping[str, Any], arrays: Arrays) -> None:
    """Write a header and named arrays to `path`, whole or not at all.

    Raises
    ------
    OSError
        If the file cannot be written.
    ValueError
        If the header is too long to be read again.
    """
    path = Path(os.fsdecode(path))
    contiguous = {name: np.array(value, order="C") for name, value in arrays.items()}
    content = json.dumps({"format": FORMAT, **header})
    if len(content) > MAX_HEADER:
        raise ValueError(
            f"The model cannot be saved: its header, with labels, names and history, has "
            f"{len(content)} characters, and at most {MAX_HEADER} can be read. A shorter history_ "
            "or fewer labels make it shorter."
        )
    write_whole(path, to_bytes(contiguous, {"pydeq": content}))


def read(path: PathName) -> tuple[dict[str, Any], Arrays]:
    """Return the header and the arrays that `write` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is not a model file, is damaged, or was written by a newer pydeq.
    """
    path = Path(os.fsdecode(path))
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise not_a_model(path, f"it is {kind_of_file(mode)}")
    metadata, arrays = _read_safetensors(path)
    header = _parse(path, metadata.get("pydeq", ""))
    version = header.get("format")
    if type(version) is not int:
        raise not_a_model(path, "its header has no description of a pydeq model")
    if version != FORMAT:
        from pydeq import __version__

        writer = header.get("pydeq", "(unknown)")
        raise ModelFileError(
            f"{path} was written by pydeq {writer if isinstance(writer, str) else '?':.40} in "
            f"format {reprlib.repr(version)}; pydeq {__version__} reads format {FORMAT}. Load it "
            "with a newer pydeq."
        )
    return header, arrays


def _read_safetensors(path: Path) -> tuple[dict[str, str], Arrays]:
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            for name in names:
                if (dtype := file.get_slice(name).get_dtype()) not in _DTYPES:
                    raise not_a_model(path, f"its array {name} is of dtype {dtype}")
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise not_a_model(path, f"it is not a whole safetensors file ({error})") from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    """Return the JSON object of the header."""
    header = None
    if len(text) <= MAX_HEADER:
        try:
            header = json.loads(text, object_pairs_hook=_unique)
        except (RecursionError, ValueError) as error:
            raise not_a_model(
                path, f"its header has no description of a pydeq model ({error})"
            ) from error
    if not isinstance(header, dict):
        raise not_a_model(path, "its header has no description of a pydeq model")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in it")
    return found


def not_a_model(path: PathName, reason: str) -> ModelFileError:
    """Return the error that says why `path` is no model, and what is needed."""
    shown = reason if len(reason) <= _REASON else f"{reason[:_REASON]} ..."
    return ModelFileError(
        f"{os.fsdecode(path)} cannot be loaded: {shown}. A file written by save() of a pydeq "
        "estimator, complete and unchanged, is needed."
    )
