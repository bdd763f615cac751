"""Arrays that are sliced by rows and need not fit into memory: which they are, how they are read.

A fit sees its samples in another order every epoch. It reads them from a memory-mapped file: the
user's own, or a temporary one that other arrays are copied to, block by block.
"""

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse

from pydeq.model import RowReader, iter_blocks

__all__ = ["IN_MEMORY_BYTES", "is_sliced", "mapped", "read_blocks", "row_bytes", "spooled"]

IN_MEMORY_BYTES = 64 << 20
"""What is not larger is read as a whole."""


def is_sliced(values: Any) -> bool:
    """Return whether `values` is read in pieces: an array that is larger, and not in memory.

    It has a shape and a numpy dtype and gives rows for a slice, as memory maps, h5py's datasets,
    and the arrays of zarr and Dask do.
    """
    if isinstance(values, np.ndarray) and not isinstance(values, np.memmap):
        return False
    shape, dtype = getattr(values, "shape", None), getattr(values, "dtype", None)
    if not isinstance(shape, tuple) or not shape or not isinstance(dtype, np.dtype):
        return False
    if not hasattr(values, "__getitem__") or hasattr(values, "iloc"):
        return False
    if scipy.sparse.issparse(values) or (
        # An array of another library, in memory.
        hasattr(values, "__dlpack__") and not isinstance(values, np.memmap)
    ):
        return False
    if not all(isinstance(n, int | np.integer) for n in shape):
        raise ValueError(
            f"An array whose rows are counted is needed; got shape {shape}. Of a Dask array "
            "compute_chunk_sizes() counts them."
        )
    return values.shape[0] * row_bytes(values) > IN_MEMORY_BYTES


def row_bytes(values: Any) -> int:
    """Return the size of a row of an array."""
    return values.dtype.itemsize * int(np.prod(values.shape[1:]))


def read_blocks(values: Any, bytes_of_row: int) -> Iterator[np.ndarray]:
    """Yield the rows of an array in the blocks of :func:`pydeq.model.iter_blocks`.

    What lies in chunks is read chunk by chunk, each once.
    """
    blocks = iter_blocks(values.shape[0], bytes_of_row)
    if isinstance(values, np.ndarray):
        yield from map(RowReader(values), blocks)
        return
    dtype = values.dtype.newbyteorder("=")
    rest = np.empty((0, *values.shape[1:]), dtype)
    rows = next(blocks, None)
    for start, stop in pairwise(_edges(values)):
        # Dask has its own way to numpy, which keeps a mask.
        chunk = values[start:stop]
        chunk = chunk.compute() if hasattr(chunk, "compute") else np.asanyarray(chunk)
        if np.ma.isMaskedArray(chunk) and np.ma.getmaskarray(chunk).any():
            raise ValueError("An array without masked values is needed; got one that has some.")
        chunk = np.asarray(chunk, dtype)
        rest = np.concatenate([rest, chunk]) if len(rest) else chunk
        while rows is not None and len(rest) >= (n := rows.stop - rows.start):
            yield rest[:n]
            rest, rows = rest[n:], next(blocks, None)


def _edges(values: Any) -> list[int]:
    """Return where reads start, and the end: at the edges of chunks."""
    n, chunks = values.shape[0], getattr(values, "chunks", None)
    size = next(rows.stop for rows in iter_blocks(n, row_bytes(values)))
    if chunks and isinstance(chunks[0], tuple):  # Dask: the length of each
        return [0, *np.cumsum(chunks[0]).tolist()]
    if chunks and isinstance(chunks[0], int):  # h5py, zarr: of all but the last
        size = -(-size // chunks[0]) * chunks[0]
    return [*range(0, n, size), n]


def mapped(values: Any) -> np.memmap:
    """Return an array as a memory-mapped file: itself, or a copy that goes with the last map of it.

    Raises
    ------
    OSError
        If the folder for temporary files has no room for it.
    """
    if isinstance(values, np.memmap):
        return values
    return spooled(read_blocks(values, row_bytes(values)), values.shape[0])


def spooled(blocks: Iterator[np.ndarray], n_rows: int) -> np.memmap:
    """Return `blocks`, one after the other, as a mapped temporary file of `n_rows` rows."""
    with tempfile.TemporaryFile(prefix="pydeq-") as file:
        first = None
        try:
            for block in blocks:
                first = block[:1] if first is None else first
                file.write(np.ascontiguousarray(block).data)
            file.flush()
        except OSError as error:
            error.add_note(
                f"A fit copies such an array to a temporary file, in {tempfile.gettempdir()}. The "
                "variable TMPDIR names another folder; a memory-mapped .npy file is not copied."
            )
            raise
        assert first is not None, "a block at least"
        return np.memmap(file, first.dtype, "r", shape=(n_rows, *first.shape[1:]))
