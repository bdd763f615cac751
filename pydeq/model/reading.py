"""Rows of an array, in memory or in a mapped file, read a few at a time and ahead of their use."""

import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, final

import numpy as np

__all__ = ["RowReader", "read_ahead"]

MAPPED_BYTES = 64 << 20
"""What a mapped file may take of memory before its pages are given back."""

_FAULT_BYTES = 1 << 16
"""What Linux maps with a single row that is read."""

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
        self._row_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:]))
        self._touched = 0

    def __call__(self, index: slice | np.ndarray) -> np.ndarray:
        """Return the rows at `index`; of a slice of an array in memory it is a view."""
        rows = np.asarray(self._array[index])
        if self._map is None:
            return rows
        if isinstance(index, slice):
            rows = rows.copy()
            self._touched += rows.nbytes
        else:
            self._touched += len(rows) * (self._row_bytes + _FAULT_BYTES)
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
