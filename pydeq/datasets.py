"""Data for the demos: MNIST, and the small digits that come with scikit-learn."""

import gzip
import importlib.util
import math
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import sklearn.datasets
from sklearn.model_selection import train_test_split

__all__ = ["load_digits", "load_mnist", "shifted"]

# The IDX magic number: two zero bytes, 8 for unsigned bytes, the number of dimensions.
# Format: https://web.archive.org/web/20220331130319/http://yann.lecun.com/exdb/mnist/
_MAGIC_IMAGES = 0x00000803
_MAGIC_LABELS = 0x00000801
_SIDE = 28
_N_TRAIN, _N_TEST = 60_000, 10_000
_GZIP = b"\x1f\x8b"

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

Dataset = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def load_digits() -> Dataset:
    """Return scikit-learn's bundled 8 x 8 digits, split into training and test samples.

    Nothing is downloaded. The split is stratified and always the same: 1347 and 450 samples.

    Returns
    -------
    X_train : ndarray (1347, 64) of float32
        Pixels row by row in [0, 1], 1 being ink.
    y_train : ndarray (1347,) of int64
        The digits, 0 to 9.
    X_test : ndarray (450, 64) of float32
    y_test : ndarray (450,) of int64

    Examples
    --------
    >>> from pydeq.datasets import load_digits
    >>> X_train, y_train, X_test, y_test = load_digits()
    >>> X_train.shape, X_test.shape
    ((1347, 64), (450, 64))
    """
    digits: Any = sklearn.datasets.load_digits()
    X = np.asarray(digits.data / 16, dtype=np.float32)
    y = np.asarray(digits.target, dtype=np.int64)
    rows: Any = train_test_split(np.arange(len(y)), test_size=450, stratify=y, random_state=0)
    train, test = rows
    return X[train], y[train], X[test], y[test]


def load_mnist(root: str | Path = "data") -> Dataset:
    """Return MNIST: 60,000 handwritten digits to train on and 10,000 to test on, 28 x 28 pixels.

    The four IDX files are read where they are already under `root`, either in ``root/MNIST/raw``,
    where torchvision puts them, or in ``root`` itself, packed (``.gz``) or not. If one is missing,
    they are downloaded to ``root/MNIST/raw`` first: by torchvision where it is installed
    (``pip install 'pydeq[mnist]'``), else by scikit-learn, which gets the same images in the same
    order from OpenML (``mnist_784``), keeps what it gets in ``root/openml`` and takes a minute or
    more to read it, once.

    Parameters
    ----------
    root : str or Path, default="data"
        The folder to read from and to download to.

    Returns
    -------
    X_train : ndarray (60000, 784) of float32
        Pixels row by row in [0, 1], 1 being ink.
    y_train : ndarray (60000,) of int64
        The digits, 0 to 9.
    X_test : ndarray (10000, 784) of float32
    y_test : ndarray (10000,) of int64

    Raises
    ------
    FileNotFoundError
        If a file is missing and neither torchvision nor scikit-learn could download it.
    ValueError
        If a file is not what its name says, or is damaged.
    """
    root = Path(root).expanduser()
    # Files first, because reading them needs neither torch, whose import takes seconds and must
    # not come before Julia's in a process, nor permission to write, which torchvision needs to
    # unpack a .gz. What it downloads is read in the same way.
    if _missing(root):
        reasons = [download(root) for download in (_by_torchvision, _by_sklearn) if _missing(root)]
        if missing := _missing(root):
            raise FileNotFoundError(_how_to_get(missing, root, "; ".join(reasons)))
    X_train, y_train, X_test, y_test = (_find(root, name) for name in _FILES)
    return *_read_pair(X_train, y_train), *_read_pair(X_test, y_test)


def shifted(
    X: np.ndarray, shape: tuple[int, int, int], pixels: int, random_state: int
) -> np.ndarray:
    """Return images, each moved by up to some whole pixels in both directions; 0 comes after it.

    Training on images that are moved anew for each epoch makes more of them.

    Parameters
    ----------
    X : ndarray (n, n_features)
    shape : tuple of int
        What a row of X is: (channels, height, width).
    pixels : int
        The most that an image is moved by; each way is as likely.
    random_state : int
        Seeds the generator that draws the ways.

    Returns
    -------
    ndarray (n, n_features)
        Of the dtype of X.

    Raises
    ------
    ValueError
        If a row of X is no image of that shape.

    Examples
    --------
    >>> import numpy as np
    >>> from pydeq.datasets import shifted
    >>> shifted(np.array([[1, 2, 3, 4]]), (1, 2, 2), 1, random_state=2)
    array([[0, 3, 0, 0]])
    """
    if X.ndim != 2 or X.shape[1] != math.prod(shape):
        raise ValueError(
            f"shifted: each row of X must be an image of shape {shape}, {math.prod(shape)} values; "
            f"X has shape {X.shape}."
        )
    n, (channels, height, width), span = len(X), shape, range(2 * pixels + 1)
    sides = ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels))
    padded = np.pad(X.reshape(n, channels, height, width), sides)
    moved = np.empty((n, channels, height, width), X.dtype)
    rows, columns = np.random.default_rng(random_state).integers(len(span), size=(2, n))
    for i in span:
        for j in span:
            which = np.flatnonzero((rows == i) & (columns == j))
            moved[which] = padded[which, :, i : i + height, j : j + width]
    return moved.reshape(n, -1)


def _find(root: Path, name: str) -> Path:
    """Return the path of an IDX file under `root`; where there is none, where it should be."""
    folders = (root / "MNIST" / "raw", root)
    places = [folder / (name + end) for folder in folders for end in ("", ".gz")]
    return next((place for place in places if place.is_file()), places[0])


def _missing(root: Path) -> list[str]:
    """Return the names of the IDX files that are not under `root`."""
    return [name for name in _FILES if not _find(root, name).is_file()]


def _by_torchvision(root: Path) -> str:
    """Let torchvision put the files under `root`; return why it could not, in words."""
    # Beside a torch of another build torchvision fails on import with errors of many classes,
    # and a download may fail in as many ways: all of them end in the same advice.
    task = "be imported"
    try:
        from torchvision.datasets import MNIST  # pyright: ignore[reportMissingImports]

        task = "download them"
        MNIST(str(root), download=True)
    except Exception as error:
        return f"torchvision could not {task} ({_in_a_line(error)})"
    return "torchvision did not download them"


def _by_sklearn(root: Path) -> str:
    """Put OpenML's copy under `root` as IDX files; return why that failed, in words."""
    parser = "liac-arff" if importlib.util.find_spec("pandas") is None else "pandas"
    try:
        with warnings.catch_warnings():
            # scikit-learn warns before each retry; the reason that is returned says it once.
            warnings.filterwarnings("ignore", "A network error occurred")
            found: Any = sklearn.datasets.fetch_openml(
                "mnist_784", version=1, as_frame=False, parser=parser, data_home=str(root)
            )
        images = np.asarray(found.data).reshape(_N_TRAIN + _N_TEST, _SIDE, _SIDE).astype(np.uint8)
        labels = np.asarray(found.target).reshape(len(images)).astype(np.uint8)
        parts = (images[:_N_TRAIN], labels[:_N_TRAIN], images[_N_TRAIN:], labels[_N_TRAIN:])
        for name, array in zip(_FILES, parts, strict=True):
            if not _find(root, name).is_file():
                _write_idx(root / "MNIST" / "raw" / name, array)
    except Exception as error:  # of the network, of the cache, of the disk
        return f"scikit-learn could not get them from OpenML ({_in_a_line(error)})"
    return ""


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    part.write_bytes(header + array.tobytes())
    os.replace(part, path)


def _how_to_get(missing: list[str], root: Path, reason: str) -> str:
    """Return the message for missing files: which, where they were looked for, the cures."""
    return (
        f"MNIST is not complete: missing {', '.join(missing)} (with or without .gz); looked in "
        f"{root / 'MNIST' / 'raw'} and {root}; {reason}. With a network, load_mnist downloads them "
        "with torchvision (`pip install 'pydeq[mnist]'`) or, without that, with scikit-learn from "
        "OpenML. Without one, place the four IDX files in one of these folders."
    )


def _read_pair(images: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return X, (n, 784) float32 in [0, 1], and y, (n,) int64, from two IDX files."""
    pixels = _read_idx(images, _MAGIC_IMAGES)
    y = _read_idx(labels, _MAGIC_LABELS)
    if len(pixels) != len(y):
        raise ValueError(
            f"needed a label for each image; got {len(pixels)} images in {images} "
            f"and {len(y)} labels in {labels}"
        )
    if y.size and y.max() > 9:
        raise ValueError(f"{labels}: needed labels 0 to 9; got {y.max()}")
    X = pixels.reshape(len(pixels), _SIDE * _SIDE).astype(np.float32)
    X /= 255
    return X, y.astype(np.int64)


def _read_idx(path: Path, magic: int) -> np.ndarray:
    """Return an IDX file's array of uint8, of as many dimensions as `magic` says.

    Whether it is packed is seen from its content. No more is unpacked than its header says that
    there is.
    """
    with path.open("rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        if not packed:
            return _read_open_idx(path, file, magic)
        try:
            with gzip.open(file) as unpacked:
                return _read_open_idx(path, unpacked, magic)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path}: needed a whole gzip file; got {path.stat().st_size} bytes that do not "
                f"unpack ({error}). Delete it and get it again."
            ) from error


def _read_open_idx(path: Path, file: BinaryIO | gzip.GzipFile, magic: int) -> np.ndarray:
    n_dims = magic & 0xFF
    n_header = 4 * (1 + n_dims)
    header = file.read(n_header)
    if len(header) < n_header:
        raise ValueError(
            f"{path}: needed an IDX header of {n_header} bytes; got {len(header)} bytes. "
            "Delete the file and get it again."
        )
    found, n, *sides = struct.unpack(f">{1 + n_dims}I", header)
    if found != magic:
        raise ValueError(f"{path}: needed an IDX file with magic number {magic}; got {found}")
    if sides and tuple(sides) != (_SIDE, _SIDE):
        raise ValueError(
            f"{path}: needed images of {_SIDE} x {_SIDE} pixels; got {' x '.join(map(str, sides))}"
        )
    if n > _N_TRAIN:
        raise ValueError(f"{path}: needed at most {_N_TRAIN} items, as MNIST has; got {n}")
    n_bytes = math.prod((n, *sides))
    data = file.read(n_bytes + 1)  # the one more byte shows the end, and gzip's checksum
    if len(data) != n_bytes:
        got = "more" if len(data) > n_bytes else n_header + len(data)
        raise ValueError(
            f"{path}: needed {n_header + n_bytes} bytes for the shape {(n, *sides)} in its header; "
            f"got {got}. Delete the file and get it again."
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(n, *sides)
