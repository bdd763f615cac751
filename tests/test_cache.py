"""Compiled programs between processes: found, bounded, and never an error."""

import os
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import pytest

from pydeq.engines.jax import cache, describe_cache, programs

CODE = """
    import numpy as np, pydeq, warnings
    from pydeq.engines.jax import programs
    warnings.simplefilter("ignore")
    X = np.linspace(-1, 1, 12)[:, None]
    model = pydeq.DEQRegressor(
        max_iter=2, n_state=3, hidden_layer_sizes=2, engine="jax", random_state=0,
        solver="fixed_point", adjoint="jfb", stability="none",
    )
    print(*model.fit(X, X[:, 0]).predict(X), *programs.counts().values())
"""


def start(**environment):
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": "", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CODE)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process):
    """Return what was predicted, and how many programs were compiled and found."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    *predicted, compiled, found = out.split()
    return predicted, int(compiled), int(found)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "jax_has_its_own", lambda: None)
    folder = tmp_path / "new" / "cache"
    monkeypatch.setenv("PYDEQ_CACHE_DIR", str(folder))
    return folder


def test_the_next_process_compiles_nothing_and_predicts_the_same(folder):
    # Two at once, into a folder that is not there yet.
    first, second = [finish(p) for p in [start(), start()]]
    assert first[1] + first[2] == 3
    files = sorted(folder.iterdir())
    assert [f.suffix for f in files] == [".program"] * 3
    assert folder.stat().st_mode & 0o777 == 0o700
    assert finish(start()) == (first[0], 0, 3)
    assert second[0] == first[0]

    for file, damage in zip(files, (b"", file_head(files[1]), flipped(files[2])), strict=True):
        file.write_bytes(damage)
    assert finish(start()) == (first[0], 3, 0)
    assert all(cache.find(key_of(file)) for file in files)  # they have been replaced


def key_of(file):
    _, length, rest = file.read_bytes().split(b"\n", 2)
    return rest[: int(length)].decode()


def file_head(path):
    return path.read_bytes()[:2000]


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    return bytes(data)


def test_nothing_is_kept_where_it_is_switched_off(tmp_path):
    home = str(tmp_path)
    _, compiled, found = finish(start(PYDEQ_CACHE_DIR="", HOME=home, XDG_CACHE_HOME=home))
    assert (compiled, found) == (3, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_the_user_gave_jax_is_used_instead(folder, tmp_path):
    own = tmp_path / "jax"
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(own),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    finish(start(**settings))
    assert not folder.exists()
    assert len(list(own.glob("*-cache"))) >= 3


def test_of_several_processes_none_keeps_a_program(folder, monkeypatch):
    """A program names its device by the number that this has among those of all processes."""
    kept = []
    monkeypatch.setattr(programs, "_keep", lambda key, *_: kept.append(key))
    program = programs.Program(lambda code, x: (x + 1,))
    with monkeypatch.context() as several:
        several.setattr(programs.jax, "process_count", lambda: 2)
        (found,) = program("of two", jnp.zeros(3))
    assert found.tolist() == [1, 1, 1]
    assert kept == []
    program("of one", jnp.zeros(3))
    assert len(kept) == 1


def test_an_entry_comes_back_under_its_own_key_alone(folder):
    cache.keep("a", b"one")
    cache.keep("b", b"two")
    assert (cache.find("a"), cache.find("b"), cache.find("c")) == (b"one", b"two", None)
    a, b = sorted(folder.iterdir())
    a.write_bytes(b.read_bytes())
    assert {cache.find("a"), cache.find("b")} <= {None, b"one", b"two"}
    assert cache.find("a") != b"two"
    assert cache.find("b") != b"one"


def test_what_was_used_longest_ago_goes_first(folder, monkeypatch):
    monkeypatch.setattr(cache, "MAX_BYTES", 3500)
    for age, key in ((300, "a"), (200, "b"), (100, "c")):
        cache.keep(key, bytes(1000))
        newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (newest.stat().st_atime - age,) * 2)
    assert cache.find("a")  # used now
    left = folder / "dead.part"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    cache.keep("d", bytes(1000))
    assert [bool(cache.find(key)) for key in "abcd"] == [True, False, True, True]
    assert not left.exists()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_folder_that_others_may_write_to_is_not_trusted(folder):
    cache.keep("a", b"one")
    folder.chmod(0o777)
    assert cache.find("a") is None
    cache.keep("b", b"two")
    assert len(list(folder.iterdir())) == 1


def test_a_folder_that_cannot_be_made_is_no_error(folder):
    folder.parent.mkdir()
    folder.write_text("a file")
    cache.keep("a", b"one")
    assert cache.find("a") is None


def test_it_says_where_it_is(folder, monkeypatch):
    cache.keep("a", bytes(2**20))
    assert f"{folder}: 1 programs, 1.0 MB of at most 256" in describe_cache()
    monkeypatch.setenv("PYDEQ_CACHE_DIR", "")
    assert describe_cache() == "off, because PYDEQ_CACHE_DIR is empty"
    monkeypatch.setattr(cache, "jax_has_its_own", lambda: "/theirs")
    assert "JAX's own" in describe_cache()
    assert "/theirs" in describe_cache()
