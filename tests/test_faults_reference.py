"""Damaged files for ``compare --reference``: what they hold, or a ValueError that names them."""

import io
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from numpy.lib import format as npy
from test_faults_model_file import damaged

from pydeq.compare import reference_file
from pydeq.compare.reference import read_reference

X = np.arange(6.0)


def npz(pack=np.savez, **arrays):
    file = io.BytesIO()
    pack(file, **arrays)
    return file.getvalue()


def npy_file(array):
    file = io.BytesIO()
    npy.write_array(file, array)
    return file.getvalue()


def header(text, content=b"", version=b"\x01\x00"):
    """A file of numpy's format with this text as its header."""
    length = len(text).to_bytes(2, "little")
    return b"\x93NUMPY" + version + length + text.encode("latin1") + content


ORIGINALS = [
    ("a.npz", npz(x=X, prediction=X, note=X)),
    ("a.npz", npz(np.savez_compressed, x=X, prediction=X, loss=X)),
    ("a.csv", b"x,prediction\n" + b"".join(b"%d,%d.5\n" % (n, n) for n in range(20))),
]


@pytest.mark.parametrize("which", range(len(ORIGINALS)))
def test_references_at_random(which, n_cases, tmp_path):
    name, content = ORIGINALS[which]
    path = tmp_path / name
    for seed in range(n_cases):
        rng = np.random.default_rng(seed)
        path.write_bytes(damaged(content, rng))
        check(path)


def test_numpys_headers_at_random(n_cases, tmp_path):
    """What is in a zip file whose checksums are right."""
    path = tmp_path / "a.npz"
    for seed in range(n_cases):
        rng = np.random.default_rng(seed)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("loss.npy", damaged(npy_file(X), rng))
        check(path)


def check(path):
    try:
        found = read_reference(path)
    except ValueError as error:
        message = str(error)
    else:
        arrays = [found.x, found.prediction, found.loss]
        assert any(array is not None for array in arrays)
        assert all(np.isfinite(array).all() for array in arrays if array is not None)
        message = ""
    if message:
        assert str(path) in message
        assert len(message) < 1000


def member(content, name="loss.npy", method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def encrypted():
    content = bytearray(member(npy_file(X), method=zipfile.ZIP_STORED))
    content[6] |= 1  # the flag in the member's own header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # and in the directory's
    return bytes(content)


def described(shape, descr="'<f8'"):
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n", bytes(64))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (npz(loss=np.array([{}], dtype=object)), "found object"),
        (npz(loss=X * 1j), "found complex128"),
        (npz(loss=np.zeros((2, 2, 2))), r"of shape \(2, 2, 2\)"),
        (npz(loss=np.zeros(0)), "numbers"),
        (npz(loss=np.array([1e300])), "beyond 1e"),
        (npz(loss=np.array([np.inf])), "not finite"),
        (member(described("(10**9,)")), "NPZ"),
        (member(described(f"({2**60},)")), "from one to"),
        (member(described("(-8,)")), "from one to"),
        (member(described("(9,)")), "ends before"),
        (member(described("(7,)")), "goes on after"),
        (member(described("(8,)", "[('a', '<f8')]")), "found"),
        (member(header("[" * 9000)), "NPZ"),
        (member(header("{", version=b"\x09\x00")), "version"),
        (member(npy_file(X), method=zipfile.ZIP_BZIP2), "numpy does not write"),
        (member(npy_file(X), method=zipfile.ZIP_LZMA), "numpy does not write"),
        (encrypted(), "encrypted"),
        (npy_file(X), "NPZ"),
        (b"", "NPZ"),
    ],
)
def test_an_npz_is_refused_in_words(content, says, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        read_reference(path)
    assert str(path) in str(caught.value)


def peak_of(path):
    tracemalloc.start()
    try:
        read_reference(path)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return message, peak


def test_only_what_is_needed_is_unpacked(tmp_path):
    bomb = np.zeros(20_000_000)
    path = tmp_path / "a.npz"
    path.write_bytes(npz(np.savez_compressed, loss=X, note=bomb))
    message, peak = peak_of(path)
    assert not message
    assert peak < 5_000_000
    path.write_bytes(member(npy_file(X) + bytes(50_000_000)))
    message, peak = peak_of(path)
    assert "goes on after its 6 numbers" in message
    assert peak < 5_000_000


def test_a_csv_has_an_end(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.truncate(10**12)  # a sparse file: a first line without end
    message, peak = peak_of(path)
    assert "write an NPZ file instead" in message
    assert peak < 4 * reference_file.MAX_CSV
    monkeypatch.setattr(reference_file, "MAX_CSV", 1000)
    path.write_bytes(b"loss\n" + b"1\n" * 600)
    assert "1000 bytes of numbers" in peak_of(path)[0]


def test_a_csv_of_names_alone_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    for content in (b"loss\n", b"loss", b"", b"\xff\xfe\n1\n", b"loss\n\x00\n", b"loss\n1e400\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.csv"):
            read_reference(path)


@pytest.mark.parametrize("name", ["a.npz", "a.csv"])
def test_a_pipe_or_a_folder_is_named(name, tmp_path):
    path = tmp_path / name
    os.mkfifo(path)
    for _ in range(2):
        with pytest.raises(ValueError, match="found a folder, a pipe or a device"):
            read_reference(path)
        if path.is_fifo():
            path.unlink()
            path.mkdir()
