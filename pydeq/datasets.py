"""Data for the demos: MNIST, and the small digits that come with scikit-learn."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
from sklearn.model_selection import train_test_split

__all__ = ["load_digits", "load_mnist"]

# The IDX magic number: two zero bytes, 8 for unsigned bytes, the number of dimensions.
# Format: https://web.archive.org/web/20220331130319/http://yann.lecun.com/exdb/mnist/
_MAGIC_IMAGES = 0x00000803
_MAGIC_LABELS = 0x00000801
_SIDE = 28

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
    where torchvision puts them, or in ``root`` itself, packed (``.gz``) or not. If one is missing
    and torchvision is installed (``pip install 'pydeq[mnist]'``), torchvision downloads them to
    ``root/MNIST/raw`` first.

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
        If a file is missing and torchvision could not provide it.
    ValueError
        If a file is not what its name says, or is damaged.
    """
    root = Path(root).expanduser()
    # Files first, because reading them needs neither torch, whose import takes seconds and must
    # not come before Julia's in a process, nor permission to write, which torchvision needs to
    # unpack a .gz. What it downloads is read in the same way.
    if _missing(root):
        reason = _download(root)
        if missing := _missing(root):
            raise FileNotFoundError(_how_to_get(missing, root, reason))
    X_train, y_train, X_test, y_test = (_find(root, name) for name in _FILES)
    return *_read_pair(X_train, y_train), *_read_pair(X_test, y_test)


def _find(root: Path, name: str) -> Path:
    """Return the path of an IDX file under `root`; where there is none, where it should be."""
    folders = (root / "MNIST" / "raw", root)
    places = [folder / (name + end) for folder in folders for end in ("", ".gz")]
    return next((place for place in places if place.is_file()), places[0])


def _missing(root: Path) -> list[str]:
    """Return the names of the IDX files that are not under `root`."""
    return [name for name in _FILES if not _find(root, name).is_file()]


def _download(root: Path) -> str:
    """Let torchvision put the files under `root`; return why it could not, or an empty string."""
    # Beside a torch of another build torchvision fails on import with errors of many classes,
    # and a download may fail in as many ways: all of them end in the same advice.
    task = "be imported"
    try:
        from torchvision.datasets import MNIST  # pyright: ignore[reportMissingImports]

        task = "download them"
        MNIST(str(root), download=True)
    except Exception as error:
        cause = " ".join(str(error).split())  # torchvision's own message is of many lines
        return f"torchvision could not {task} ({type(error).__name__}: {cause})"
    return ""


def _how_to_get(missing: list[str], root: Path, reason: str) -> str:
    """Return the message for missing files: which, where they were looked for, the two cures."""
    return (
        f"MNIST is not complete: missing {', '.join(missing)} (with or without .gz); looked in "
        f"{root / 'MNIST' / 'raw'} and {root}; {reason or 'torchvision did not download them'}. "
        "Either download them with `pip install 'pydeq[mnist]'` and load_mnist again, "
        "or place the four IDX files in one of these folders."
    )


def _read_pair(images: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return X, (n, 784) float32 in [0, 1], and y, (n,) int64, from two IDX files."""
    pixels = _read_idx(images, _MAGIC_IMAGES)
    y = _read_idx(labels, _MAGIC_LABELS)
    if pixels.shape[1:] != (_SIDE, _SIDE):
        raise ValueError(
            f"{images}: needed images of {_SIDE} x {_SIDE} pixels; "
            f"got {' x '.join(map(str, pixels.shape[1:]))}"
        )
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
    """Return an IDX file's array of uint8, of as many dimensions as `magic` says."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: needed a whole gzip file; got {path.stat().st_size} bytes that do not "
            f"unpack ({error}). Delete it and get it again."
        ) from error
    n_dims = magic & 0xFF
    n_header = 4 * (1 + n_dims)
    if len(data) < n_header:
        raise ValueError(
            f"{path}: needed an IDX header of {n_header} bytes; got {len(data)} bytes. "
            "Delete the file and get it again."
        )
    found, *shape = struct.unpack_from(f">{1 + n_dims}I", data)
    if found != magic:
        raise ValueError(f"{path}: needed an IDX file with magic number {magic}; got {found}")
    n_bytes = n_header + math.prod(shape)
    if len(data) != n_bytes:
        raise ValueError(
            f"{path}: needed {n_bytes} bytes for the shape {tuple(shape)} in its header; "
            f"got {len(data)}. Delete the file and get it again."
        )
    return np.frombuffer(data, dtype=np.uint8, offset=n_header).reshape(shape)
