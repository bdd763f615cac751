import gzip
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import sklearn.datasets

from pydeq.datasets import load_digits, load_mnist

RAW = Path("MNIST", "raw")
TRAIN_X, TRAIN_Y, TEST_X, TEST_Y = FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
REAL = Path(os.environ.get("PYDEQ_DATA", Path(__file__).parents[2] / "shared" / "data"))


def idx(array):
    """The IDX file of an array of unsigned bytes."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def small():
    """Five training and three test images of random pixels, as raw arrays."""
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (5, 28, 28), dtype=np.uint8),
        np.array([3, 1, 4, 1, 9], dtype=np.uint8),
        rng.integers(0, 256, (3, 28, 28), dtype=np.uint8),
        np.array([2, 7, 0], dtype=np.uint8),
    ]
    return dict(zip(FILES, arrays, strict=True))


def write(folder, arrays, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))


def check(loaded, arrays):
    X_train, y_train, X_test, y_test = loaded
    for X, images in ((X_train, arrays[TRAIN_X]), (X_test, arrays[TEST_X])):
        assert X.dtype == np.float32
        np.testing.assert_allclose(X, images.reshape(len(images), 784) / 255, rtol=1e-6)
    for y, labels in ((y_train, arrays[TRAIN_Y]), (y_test, arrays[TEST_Y])):
        assert y.dtype == np.int64
        np.testing.assert_array_equal(y, labels)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def fetch_openml(*_, **__):
        raise URLError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch_openml)


@pytest.fixture
def no_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)


def fake_torchvision(monkeypatch, mnist):
    package, datasets = ModuleType("torchvision"), ModuleType("torchvision.datasets")
    datasets.MNIST = mnist
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("folder", [RAW, Path()])
def test_reads_idx_files_packed_or_not(tmp_path, small, folder, packed, no_torchvision):
    write(tmp_path / folder, small, packed)
    check(load_mnist(tmp_path), small)
    check(load_mnist(str(tmp_path)), small)


def test_reads_files_spread_over_both_folders(tmp_path, small, no_torchvision):
    write(tmp_path / RAW, {name: small[name] for name in FILES[:2]}, packed=True)
    write(tmp_path, {name: small[name] for name in FILES[2:]})
    check(load_mnist(tmp_path), small)


def test_files_on_disk_need_no_torchvision(tmp_path, small, monkeypatch):
    calls = []
    fake_torchvision(monkeypatch, lambda *args, **kwargs: calls.append(args))
    write(tmp_path, small)
    check(load_mnist(tmp_path), small)
    assert calls == []


def test_torchvision_downloads_what_is_missing(tmp_path, small, monkeypatch):
    calls = []

    def mnist(root, download):
        calls.append((root, download))
        write(Path(root) / RAW, small)

    fake_torchvision(monkeypatch, mnist)
    check(load_mnist(tmp_path), small)
    assert calls == [(str(tmp_path), True)]


def test_missing_file_says_which_where_and_the_two_ways(tmp_path, small, no_torchvision):
    write(tmp_path, {name: small[name] for name in FILES if name != TEST_X})
    with pytest.raises(FileNotFoundError) as caught:
        load_mnist(tmp_path)
    message = str(caught.value)
    assert TEST_X in message
    assert not any(name in message for name in FILES if name != TEST_X)
    assert f"{tmp_path / RAW} and {tmp_path};" in message
    assert "torchvision could not be imported (ModuleNotFoundError" in message
    assert "scikit-learn could not get them from OpenML (URLError" in message
    assert "pip install 'pydeq[mnist]'" in message
    assert "place the four IDX files" in message


def test_broken_torchvision_is_named(tmp_path, monkeypatch):
    # What torchvision of one build does beside a torch of another.
    package = tmp_path / "site" / "torchvision"
    package.mkdir(parents=True)
    package.joinpath("__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(package.parent)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(FileNotFoundError, match=r"RuntimeError: operator torchvision::nms"):
        load_mnist(tmp_path / "data")


def test_failed_download_is_named(tmp_path, monkeypatch):
    def mnist(root, download):
        raise RuntimeError("Error downloading train-images:\nTried\nnothing")

    fake_torchvision(monkeypatch, mnist)
    match = r"download them \(RuntimeError: Error downloading train-images: Tried nothing\)"
    with pytest.raises(FileNotFoundError, match=match):
        load_mnist(tmp_path)


def test_download_that_brings_nothing_is_named(tmp_path, monkeypatch):
    fake_torchvision(monkeypatch, lambda root, download: None)
    with pytest.raises(FileNotFoundError, match="torchvision did not download them; scikit"):
        load_mnist(tmp_path)


@pytest.mark.parametrize("values", [np.int64, np.float64])
def test_without_torchvision_the_files_come_from_openml_once(
    tmp_path, small, monkeypatch, no_torchvision, values
):
    # As scikit-learn has it: 70,000 rows, the training images first, labels that are strings.
    pixels = np.zeros((70_000, 784), np.uint8)
    labels = np.arange(70_000) % 10
    for start, images, digits in ((0, TRAIN_X, TRAIN_Y), (60_000, TEST_X, TEST_Y)):
        n = len(small[images])
        pixels[start : start + n] = small[images].reshape(n, 784)
        labels[start : start + n] = small[digits]
    calls = []

    def fetch_openml(name, **options):
        calls.append((name, options))
        return SimpleNamespace(
            data=pixels[:].astype(values) if values is np.int64 else pixels,
            target=labels.astype(str).astype(object),
        )

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch_openml)
    X_train, y_train, X_test, y_test = load_mnist(tmp_path)
    assert X_train.shape == (60_000, 784)
    assert X_test.shape == (10_000, 784)
    check((X_train[:5], y_train[:5], X_test[:3], y_test[:3]), small)
    np.testing.assert_array_equal(y_train, labels[:60_000])
    load_mnist(tmp_path)
    ((name, options),) = calls
    assert (name, options["version"], options["data_home"]) == ("mnist_784", 1, str(tmp_path))
    assert sorted(file.name for file in (tmp_path / RAW).iterdir()) == sorted(FILES)


def test_openml_leaves_the_files_that_are_there(tmp_path, small, monkeypatch, no_torchvision):
    write(tmp_path, {name: small[name] for name in FILES if name != TEST_Y})
    found = SimpleNamespace(data=np.zeros((70_000, 784), np.uint8), target=np.full(70_000, "1"))
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda *_, **__: found)
    with pytest.raises(ValueError, match=r"3 images in .* and 10000 labels"):
        load_mnist(tmp_path)
    assert [file.name for file in (tmp_path / RAW).iterdir()] == [TEST_Y]


def test_another_data_set_of_openml_is_refused(tmp_path, monkeypatch, no_torchvision):
    found = SimpleNamespace(data=np.zeros((150, 4)), target=np.zeros(150))
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda *_, **__: found)
    with pytest.raises(FileNotFoundError, match=r"from OpenML .ValueError: cannot reshape"):
        load_mnist(tmp_path)


@pytest.mark.parametrize(
    ("name", "damage", "match"),
    [
        (TRAIN_X, lambda data: data[:-1], r"needed 3936 bytes .*\(5, 28, 28\).*; got 3935"),
        (TRAIN_X, lambda data: data + b"\0", "needed 3936 bytes .*; got more"),
        (TRAIN_X, lambda data: data[:10], "header of 16 bytes; got 10"),
        (TEST_Y, lambda data: b"", "header of 8 bytes; got 0"),
        (TEST_Y, lambda data: b"\x89PNG" + data, "magic number 2049; got 2303741511"),
        (TRAIN_Y, lambda data: idx(np.zeros(4, np.uint8)), "5 images in .* and 4 labels"),
        (TRAIN_Y, lambda data: idx(np.full(5, 10, np.uint8)), "labels 0 to 9; got 10"),
        (TEST_X, lambda data: idx(np.zeros((3, 8, 8), np.uint8)), "28 x 28 pixels; got 8 x 8"),
    ],
)
def test_damaged_file(tmp_path, small, name, damage, match):
    write(tmp_path, small)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=match) as caught:
        load_mnist(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-20],  # truncated
        lambda data: data[:10] + b"\xff" * 20 + data[30:],  # garbled within
        lambda data: data[:-8] + bytes(8),  # its checksum is wrong
    ],
)
def test_damaged_gzip(tmp_path, small, damage):
    write(tmp_path, small, packed=True)
    path = tmp_path / f"{TEST_X}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="needed a whole gzip file; got") as caught:
        load_mnist(tmp_path)
    assert str(path) in str(caught.value)


def test_content_decides_whether_a_file_is_packed(tmp_path, small):
    write(tmp_path, small)
    for name in FILES[:2]:
        path = tmp_path / name
        path.write_bytes(gzip.compress(path.read_bytes()))
    for name in FILES[2:]:
        (tmp_path / name).rename(tmp_path / f"{name}.gz")
    check(load_mnist(tmp_path), small)


@pytest.mark.parametrize("n", [3, 60_000, 2**32 - 1])
def test_no_more_is_unpacked_than_the_header_promises(tmp_path, small, n):
    write(tmp_path, small)
    header = struct.pack(">4I", 0x803, n, 28, 28)
    bomb = gzip.compress(header + bytes(200_000_000), compresslevel=1)
    (tmp_path / TEST_X).write_bytes(bomb)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"needed (at most 60000 items|\d+ bytes .* got more)"):
        load_mnist(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * (784 * min(n, 60_000) + 1_000_000)


def test_labels_in_place_of_images(tmp_path, small):
    write(tmp_path, small | {TEST_X: np.zeros(100, np.uint8)})
    with pytest.raises(ValueError, match="magic number 2051; got 2049"):
        load_mnist(tmp_path)


def test_real_mnist():
    if not (REAL / RAW).is_dir():
        pytest.skip(f"no MNIST in {REAL}; set PYDEQ_DATA to a folder that holds MNIST/raw")
    X_train, y_train, X_test, y_test = load_mnist(REAL)
    assert X_train.shape == (60000, 784)
    assert X_test.shape == (10000, 784)
    assert (X_train.dtype, y_train.dtype) == (np.float32, np.int64)
    assert (X_train.min(), X_train.max()) == (0, 1)
    assert y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert y_test[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.bincount(y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # The mean ink that the literature subtracts.
    assert X_train.mean(dtype=np.float64) == pytest.approx(0.1307, abs=1e-4)


def test_digits():
    X_train, y_train, X_test, y_test = load_digits()
    assert X_train.shape == (1347, 64)
    assert X_test.shape == (450, 64)
    assert X_train.dtype == X_test.dtype == np.float32
    assert y_train.dtype == y_test.dtype == np.int64
    assert (X_train.min(), X_train.max()) == (0, 1)
    # Stratified: every class keeps its share of a quarter, to within one sample.
    share = np.bincount(y_test) / np.bincount(np.concatenate([y_train, y_test]))
    np.testing.assert_allclose(share, 450 / 1797, atol=1 / 174)


def test_digits_are_the_bundled_ones_each_once():
    X_train, y_train, X_test, y_test = load_digits()
    got = np.column_stack([np.vstack([X_train, X_test]) * 16, np.concatenate([y_train, y_test])])
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    expected = np.column_stack([pixels, labels])
    np.testing.assert_array_equal(got[np.lexsort(got.T)], expected[np.lexsort(expected.T)])


def test_digits_split_is_always_the_same():
    np.random.seed(1)  # noqa: NPY002 - the global state that must not matter
    first = load_digits()
    np.random.seed(2)  # noqa: NPY002
    for a, b in zip(first, load_digits(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_import_does_not_load_torch():
    code = "import pydeq.datasets, sys; assert not {'torch', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
