"""Arrays of numbers from a file that somebody else's program wrote, NPZ or CSV.

What a file says of itself is checked before room is made for it. Nothing in it is run, and no more
of it is unpacked than the arrays that are asked for.
"""

import io
import math
import os
import stat
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

__all__ = ["read_arrays"]

MAX_NUMBERS = 2**25
"""Numbers that an array may have; MNIST's test images are 7.8 million."""
MAX_CSV = 2**26
"""Bytes that a CSV may have."""
MAX_LINE = 2**20
"""Bytes that a CSV's line of names may have."""
LARGEST = 1e100
"""Size that a number may have: differences are squared."""

_DAMAGE = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile, zlib and numpy raise where a file is damaged."""


def read_arrays(path: Path, names: Iterable[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return those of the arrays that a file has, as float64, and the names of all its arrays.

    Parameters
    ----------
    path : Path
        An NPZ file, or a CSV with its name ending in ``.csv``, whose first line has names.
    names : iterable of str

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not such a file, is damaged, larger than it may be, or an array is not numbers;
        says what was needed and what was found.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path}: needed a file; found a folder, a pipe or a device")
    is_csv = path.suffix.lower() == ".csv"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what ends in an error below, or is well
            found, all_names = _read_csv(path) if is_csv else _read_npz(path, set(names))
    except _DAMAGE as error:
        needed = "numbers below a line of names" if is_csv else "an NPZ file (or a CSV)"
        cause = str(error) or f"it is damaged ({type(error).__name__})"
        raise ValueError(f"{path}: needed {needed}: {cause:.300}") from error
    return {name: _numbers(path, name, found[name]) for name in names if name in found}, all_names


def _read_npz(path: Path, names: set[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        for name in members.keys() & names:
            info = members[name]
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name} is packed in a way that numpy does not write")
            with archive.open(info) as member:
                found[name] = _read_npy(name, member)
    return found, list(members)


def _read_npy(name: str, member: IO[bytes]) -> np.ndarray:
    """Return an array of at most two dimensions, whose header is checked before it is read."""
    version = npy.read_magic(member)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"{name} is of version {version} of numpy's format")
    shape, fortran_order, dtype = readers[version](member)
    size = math.prod(shape)
    if dtype.kind not in "biuf" or len(shape) not in (1, 2) or not 0 < size <= MAX_NUMBERS:
        raise ValueError(
            f"needed {name} to be one- or two-dimensional numbers, from one to {MAX_NUMBERS} of "
            f"them; found {dtype} of shape {shape}"
        )
    content = member.read(size * dtype.itemsize)
    if len(content) < size * dtype.itemsize:
        raise ValueError(f"{name} ends before its {size} numbers do")
    if member.read(1):  # at the end, zipfile compares the checksum
        raise ValueError(f"{name} goes on after its {size} numbers")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran_order else "C")


def _read_csv(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the columns by name; those that differ in a number at the end are one array."""
    with path.open("rb") as file:
        line = file.readline(MAX_LINE + 1)
        content = file.read(MAX_CSV + 1)
    if len(line) > MAX_LINE or len(content) > MAX_CSV:
        raise ValueError(
            f"it has more than the {MAX_LINE} bytes of names or {MAX_CSV} bytes of numbers that "
            "are read; write an NPZ file instead"
        )
    names = [name.strip().strip('"') for name in line.decode("utf-8-sig").split(",")]
    rows = np.loadtxt(io.StringIO(content.decode("utf-8")), delimiter=",", ndmin=2)
    if rows.shape[1] != len(names):
        raise ValueError(f"{len(names)} names, but {rows.shape[1]} columns of numbers")
    columns: dict[str, list[np.ndarray]] = {}
    for name, column in zip(names, rows.T, strict=True):
        columns.setdefault(name.rstrip("0123456789"), []).append(column)
    return {name: np.stack(parts, axis=1) for name, parts in columns.items()}, list(columns)


def _numbers(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    if values.size == 0:
        raise ValueError(f"{path}: needed {name} to be numbers, at least one; found none")
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{path}: {name} has values that are not finite")
    if np.abs(numbers).max() > LARGEST:
        raise ValueError(f"{path}: {name} has values beyond {LARGEST:g}, which are not compared")
    return numbers
