"""Arrays that are sliced by rows: which they are, and that every row is read once, in order."""

import errno
import gc
import os
import tempfile
import threading
from pathlib import Path

import dask.array
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pydeq.estimators import rows
from pydeq.estimators.rows import is_sliced, mapped, read_blocks, row_bytes
from pydeq.model import RowReader, batching, read_ahead


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """What is small is large here: blocks of 7 rows, and nothing is read as a whole."""
    monkeypatch.setattr(rows, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(batching, "BLOCK_ROWS", 7)


def on_disk(array, folder):
    np.save(folder / "X.npy", array)
    return np.load(folder / "X.npy", mmap_mode="r")


def in_h5py(array, folder, chunks=None):
    # In a file of its own that lives as long as the dataset.
    file = h5py.File(tempfile.mktemp(dir=folder), "w")
    return file.create_dataset("X", data=array, chunks=chunks)


def in_zarr(array, folder, chunks=None):
    made = zarr.create_array(
        tempfile.mkdtemp(dir=folder), shape=array.shape, dtype=array.dtype, chunks=chunks or "auto"
    )
    made[:] = array
    return made


SOURCES = {
    "memmap": on_disk,
    "h5py": in_h5py,
    "zarr": in_zarr,
    "dask": lambda array, folder: dask.array.from_array(array, chunks=(5, 2)),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_what_is_read_in_pieces(source, tmp_path):
    assert is_sliced(source(np.ones((9, 3)), tmp_path))


@pytest.mark.parametrize(
    "values",
    [
        np.ones((9, 3)),
        np.ma.ones((9, 3)),
        [[1.0, 2.0]],
        pd.DataFrame({"a": [1.0]}),
        pd.Series([1.0, 2.0]),
        scipy.sparse.csr_array(np.ones((9, 3))),
        np.float64(3),
        None,
        "text",
    ],
    ids=lambda values: type(values).__name__,
)
def test_what_is_not(values):
    assert not is_sliced(values)


def test_what_is_small_is_read_as_a_whole(monkeypatch, tmp_path):
    monkeypatch.setattr(rows, "IN_MEMORY_BYTES", 9 * 3 * 8)
    assert not is_sliced(on_disk(np.ones((9, 3)), tmp_path))
    assert is_sliced(on_disk(np.ones((10, 3)), tmp_path))


def test_rows_that_nobody_counted_are_an_error():
    unknown = dask.array.from_array(np.arange(9.0), chunks=3)
    unknown = unknown[unknown > 3][:, None]
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        is_sliced(unknown)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    n=st.integers(1, 40),
    chunk=st.integers(1, 45),
    kind=st.sampled_from(["h5py", "zarr", "dask", "memmap"]),
    dtype=st.sampled_from(["f4", "f8", "i1", ">f8"]),
)
def test_blocks_are_those_of_an_array_in_memory(n, chunk, kind, dtype, tmp_path):
    array = np.arange(n * 3).reshape(n, 3).astype(dtype)
    if kind == "dask":
        source = dask.array.from_array(array, chunks=(chunk, 2))
    elif kind == "memmap":
        source = on_disk(array, tmp_path)
    else:
        source = {"h5py": in_h5py, "zarr": in_zarr}[kind](array, tmp_path, (min(chunk, n), 2))
    blocks = list(read_blocks(source, row_bytes(source)))
    assert [len(block) for block in blocks] == [7] * (n // 7) + [n % 7] * (n % 7 > 0)
    np.testing.assert_array_equal(np.concatenate(blocks), array)
    copy = mapped(source)
    assert isinstance(copy, np.memmap)
    assert copy.dtype == (array.dtype if kind == "memmap" else array.dtype.newbyteorder("="))
    np.testing.assert_array_equal(copy, array)


def test_each_chunk_of_dask_is_computed_once():
    computed = []

    def make(block_info):
        (first, last), _ = block_info[None]["array-location"]
        computed.append(first)
        return np.full((last - first, 3), float(first))

    source = dask.array.map_blocks(
        make, chunks=((9, 9, 4), 3), dtype="f8", meta=np.empty((0, 0)), name="counted"
    )
    found = np.concatenate(list(read_blocks(source, row_bytes(source))))
    assert computed == [0, 9, 18]
    np.testing.assert_array_equal(found[:, 0], np.repeat([0, 9, 18], [9, 9, 4]))


def test_masked_values_in_a_chunk_are_refused():
    masked = dask.array.ma.masked_equal(dask.array.from_array(np.arange(9.0)[:, None]), 4)
    with pytest.raises(ValueError, match="without masked values"):
        list(read_blocks(masked, 8))


def test_the_temporary_copy_goes_with_the_last_map(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    copy = mapped(dask.array.ones((20, 3)))
    assert list(tmp_path.iterdir()) == []
    assert copy.sum() == 60
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    del copy
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_full_disk_says_where_the_copy_was_to_go(monkeypatch):
    def full(*args, **kwargs):
        file = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match="No space left") as error:
        mapped(dask.array.ones((20, 3)))
    assert error.value.errno == errno.ENOSPC
    assert "TMPDIR" in error.value.__notes__[0]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), mode=st.sampled_from(["r", "r+", "c"]))
def test_rows_of_a_mapped_file_are_those_of_the_map(data, mode, tmp_path):
    array = np.random.default_rng(0).normal(size=(50, 30))
    np.save(tmp_path / "X.npy", array)
    source = np.load(tmp_path / "X.npy", mmap_mode=mode)
    if mode != "r":
        source[3] = array[3] = 7.0  # of a copy on write, memory alone has it
    part = data.draw(st.sampled_from([slice(None), slice(10, 50), slice(0, 50, 2)]))
    source, array = source[part], array[part]
    reader = RowReader(source)
    for _ in range(4):
        index = data.draw(
            st.lists(st.integers(0, len(array) - 1), min_size=1).map(np.array)
            | st.tuples(st.integers(0, 20), st.integers(20, 60)).map(lambda ends: slice(*ends))
        )
        found = reader(index)
        assert type(found) is np.ndarray
        np.testing.assert_array_equal(found, array[index])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads maps anywhere but on Linux")
def test_a_file_is_read_past_its_map_whatever_became_of_its_name(tmp_path):
    array = np.random.default_rng(0).normal(size=(4000, 100))
    np.save(tmp_path / "X.npy", array)
    source = np.load(tmp_path / "X.npy", mmap_mode="r")
    np.save(tmp_path / "other.npy", array + 1)
    (tmp_path / "other.npy").rename(tmp_path / "X.npy")
    before = resident(source)
    reader = RowReader(source)
    np.testing.assert_array_equal(reader(np.array([3999, 0, 7])), array[[3999, 0, 7]])
    np.testing.assert_array_equal(reader(slice(0, 4000)), array)
    assert resident(source) == before
    source.sum()  # through the map they count
    assert resident(source) > before + 3000


def resident(array):
    """Return the kilobytes of the map that an array lies in that count as memory."""
    address, inside = array.ctypes.data, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            low, high = (int(end, 16) for end in first.split("-"))
            inside = low <= address < high
        elif inside and first == "Rss:":
            return int(line.split()[1])
    raise AssertionError("no such map")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads maps anywhere but on Linux")
def test_a_file_that_became_shorter_is_an_error(tmp_path):
    np.save(tmp_path / "X.npy", np.zeros((4000, 100)))
    reader = RowReader(np.load(tmp_path / "X.npy", mmap_mode="r"))
    os.truncate(tmp_path / "X.npy", 100_000)
    assert reader(np.array([3])).sum() == 0
    with pytest.raises(OSError, match="is shorter than its map of 4000 rows"):
        reader(np.array([3, 3999]))


def test_items_are_made_ahead_by_another_thread():
    made, here = [], threading.current_thread()

    def items():
        for i in range(5):
            made.append((i, threading.current_thread() is here))
            yield i

    seen = []
    for i in read_ahead(items()):
        seen.append(i)
        if i == 2:
            for _ in range(1000):
                if len(made) == 4:
                    break
                threading.Event().wait(0.005)
            assert [j for j, _ in made] == [0, 1, 2, 3]  # one ahead, and no more
    assert seen == [0, 1, 2, 3, 4]
    assert not any(is_here for _, is_here in made)


def test_an_error_while_reading_ahead_is_raised_in_its_turn():
    def items():
        yield 1
        raise OSError("the disk is gone")

    reader = read_ahead(items())
    assert next(reader) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(reader)


def test_a_reader_that_is_left_early_leaves_no_thread():
    before = threading.active_count()
    reader = read_ahead(iter(range(100)))
    assert next(reader) == 0
    reader.close()
    assert threading.active_count() == before
