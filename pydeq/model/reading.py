"""Rows of an array, in memory or in a mapped file, read a few at a time and ahead of their use."""

import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, final

import numpy as np

__all__ = ["RowReader", "read_ahead"]

MAPPED_BYTES = 64 << 20
"""What a mapped file may take of memory before its pages are given back."""

_FAULT_BYTES, _PIECE = 1 << 20, 64
"""What Linux may map with a single row that is read, and how many rows are read in one go."""

_SHARED = ("r", "r+", "w+")
"""Modes of a map whose pages can be dropped: what was written to them is the file's."""

T = TypeVar("T")


@final
class RowReader:
    """Reads rows of `array`, as arrays in memory.

    Pages of a memory-mapped file count as this process's memory until the system wants them back.
    Here they are given back after every `MAPPED_BYTES`; they stay in the system's file cache.
    """

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self._map = _mapping(array)
        self._touched = 0

    def __call__(self, index: slice | np.ndarray) -> np.ndarray:
        """Return the rows at `index`; of a slice of an array in memory it is a view."""
        if self._map is None:
            return np.asarray(self._array[index])
        if isinstance(index, slice):
            return self._read(index)
        pieces = range(0, max(len(index), 1), _PIECE)
        return np.concatenate([self._read(index[i : i + _PIECE]) for i in pieces])

    def _read(self, index: slice | np.ndarray) -> np.ndarray:
        """Return a copy of rows of a map, and give its pages back where they have become many."""
        rows = np.array(self._array[index])
        faults = 0 if isinstance(index, slice) else len(index)
        self._touched += rows.nbytes + faults * _FAULT_BYTES
        if self._touched > MAPPED_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0
        return rows


def _mapping(array: Any) -> Any:
    """Return the map that `array` lies in if its pages can be given back, else None."""
    shared = isinstance(array, np.memmap) and array.mode in _SHARED
    while isinstance(array, np.ndarray):
        array = array.base
    is_map = shared and isinstance(array, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED")
    return array if is_map else None


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield `items`, each made by one other thread while the one before is in use."""
    end: Any = object()
    with ThreadPoolExecutor(1, "pydeq-reader") as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item
