"""Rows of an array, in memory or in a mapped file, read a few at a time and ahead of their use."""

import math
import os
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, final

import numpy as np

__all__ = ["RowReader", "read_ahead"]

_SHARED = ("r", "r+", "w+")
"""Modes of a map that shows what is in its file."""

T = TypeVar("T")


class _Place(NamedTuple):
    """Where the rows of an array lie: a descriptor, and the first row's position in the file."""

    descriptor: int
    start: int


@final
class RowReader:
    """Reads rows of `array`, as arrays in memory.

    Pages of a memory-mapped file count as this process's memory once they were read through the
    map. On Linux they are read from the file itself, and stay in the system's file cache alone.
    """

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self._place = _place_of(array)
        if self._place is not None:
            weakref.finalize(self, os.close, self._place.descriptor)

    def __call__(self, index: slice | np.ndarray) -> np.ndarray:
        """Return the rows at `index`; of a slice of an array in memory it is a view.

        Raises
        ------
        OSError
            If the file has become shorter than its map.
        """
        if self._place is None:
            is_map = isinstance(self._array, np.memmap)
            return np.array(self._array[index]) if is_map else np.asarray(self._array[index])
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self._array))
            return self._read(self._place, np.array([start]), max(stop - start, 0))
        return self._read(self._place, index, 1)

    def _read(self, place: _Place, first: np.ndarray, length: int) -> np.ndarray:
        """Return runs of so many rows, each from its `first`."""
        shape, dtype = self._array.shape[1:], self._array.dtype
        row = dtype.itemsize * math.prod(shape)
        offsets = (place.start + first.astype(np.int64) * row).tolist()
        runs = map(os.pread, repeat(place.descriptor), repeat(row * length), offsets)
        content = bytearray().join(runs)
        if len(content) != row * length * len(first):
            name = getattr(self._array, "filename", None) or "A file"
            raise OSError(
                f"{name} is shorter than its map of {len(self._array)} rows: it was cut after it "
                "was mapped."
            )
        return np.frombuffer(content, dtype).reshape(length * len(first), *shape)


def _place_of(array: Any) -> _Place | None:
    """Return where the rows of a mapped file lie in it; None: of what is none, or not on Linux.

    The system says which file is mapped at the array's address. Its map holds a descriptor of it,
    so that a file without a name, or with another by now, is found too.
    """
    is_map = isinstance(array, np.memmap) and array.mode in _SHARED and array.flags.c_contiguous
    if not is_map or not array.size or not Path("/proc/self/maps").exists():
        return None
    address = array.ctypes.data
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        span, _, offset, device, inode, *_ = line.split()
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= address < high:
            major, minor = (int(part, 16) for part in device.split(":"))
            descriptor = _opened(os.makedev(major, minor), int(inode))
            start = int(offset, 16) + address - low
            return None if descriptor is None else _Place(descriptor, start)
    return None


def _opened(device: int, inode: int) -> int | None:
    """Open anew a file that this process has open, or return None."""
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        try:
            found = os.stat(path)
            if (found.st_dev, found.st_ino) == (device, inode):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # another thread has closed it, or it may not be read
            continue
    return None


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield `items`, each made by one other thread while the one before is in use."""
    end: Any = object()
    with ThreadPoolExecutor(1, "pydeq-reader") as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item
