"""A model file: a header that JSON can hold, and named arrays, to one file and back.

The file is in the safetensors format: the header's metadata has one entry, ``pydeq``, a JSON
object. Nothing in the file is run.
"""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from pydeq.errors import ModelFileError

__all__ = ["FORMAT", "not_a_model", "read", "write"]

FORMAT = 1
"""Version of the file format; a file of a newer one is refused."""

Arrays = dict[str, np.ndarray]


def write(path: Path, header: Mapping[str, Any], arrays: Arrays) -> None:
    """Write a header and named arrays to `path`, whole or not at all."""
    contiguous = {name: np.array(value, order="C") for name, value in arrays.items()}
    content = json.dumps({"format": FORMAT, **header})
    _write_atomically(path, to_bytes(contiguous, {"pydeq": content}))


def read(path: Path) -> tuple[dict[str, Any], Arrays]:
    """Return the header and the arrays that `write` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is not a model file, is damaged, or was written by a newer pydeq.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise not_a_model(path, f"it is not a whole safetensors file ({error})") from error
    try:
        header = json.loads(metadata["pydeq"])
        version = header["format"]
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise not_a_model(path, "its header has no description of a pydeq model") from error
    if version != FORMAT:
        from pydeq import __version__

        raise ModelFileError(
            f"{path} was written by pydeq {header.get('pydeq', '(unknown)')} in format "
            f"{version!r}; pydeq {__version__} reads format {FORMAT}. Load it with a newer pydeq."
        )
    return header, arrays


def not_a_model(path: Path, reason: str) -> ModelFileError:
    """Return the error that says why `path` is no model, and what is needed."""
    return ModelFileError(
        f"{path} cannot be loaded: {reason}. A file written by save() of a pydeq estimator, "
        "complete and unchanged, is needed."
    )


def _write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` in one step; a failure leaves what was there, and nothing else."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
