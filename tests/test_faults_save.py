"""Saving onto what is there already, and being killed while at it."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pydeq.estimators import whole_file
from pydeq.estimators.whole_file import write_whole

OLD, NEW = b"old" * 1000, b"new" * 500_000
LEFTOVER = ".pydeq-0123456789abcdef.tmp"


@pytest.fixture(params=["nameless", "named"])
def either_way(request, monkeypatch):
    """Temporary files with and without Linux's O_TMPFILE."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("either_way")
def test_mode_is_kept_or_the_umasks(tmp_path):
    path = tmp_path / "model"
    before = os.umask(0o027)
    try:
        write_whole(path, OLD)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o600)
        write_whole(path, NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == NEW
    assert names(tmp_path) == ["model"]


@pytest.mark.usefixtures("either_way")
def test_a_link_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    for target in ("there/model", "there/new"):
        link = tmp_path / "link"
        link.symlink_to(target)
        write_whole(link, NEW)
        assert link.is_symlink()
        assert (tmp_path / target).read_bytes() == NEW
        link.unlink()
    assert names(tmp_path / "there") == ["model", "new"]


@pytest.mark.usefixtures("either_way")
def test_a_name_may_be_as_long_as_the_system_has_it(tmp_path):
    path = tmp_path / ("m" * 255)
    write_whole(path, OLD)
    write_whole(path, NEW)
    assert path.read_bytes() == NEW


def null_device(folder):
    """Return a device: one of the test's own where this is root, who could replace the system's."""
    try:
        os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        return Path("/dev/null")
    return folder / "null"


def test_what_is_no_file_is_not_replaced(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    kinds = [
        (folder / "pipe", "a pipe"),
        (null_device(tmp_path), "a device"),
        (folder, "a directory"),
    ]
    for path, name in kinds:
        before = path.stat().st_mode
        with pytest.raises(OSError, match=f"this is {name}"):
            write_whole(path, NEW)
        assert path.stat().st_mode == before
    assert names(folder) == ["pipe"]


@pytest.mark.usefixtures("either_way")
def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model"
    write_whole(path, OLD)
    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, lambda *_: (_ for _ in ()).throw(OSError("disk full")))
            with pytest.raises(OSError, match="disk full"):
                write_whole(path, NEW)
        assert path.read_bytes() == OLD
        assert names(tmp_path) == ["model"]


def test_leftovers_of_dead_writers_are_removed(tmp_path):
    mine = [".pydeq-mine.tmp", "data.tmp"]
    for name in (LEFTOVER, *mine):
        (tmp_path / name).write_bytes(OLD)
    os.mkfifo(tmp_path / LEFTOVER.replace("0", "f"))
    write_whole(tmp_path / "model", NEW)
    assert names(tmp_path) == sorted(["model", *mine, LEFTOVER.replace("0", "f")])


def test_the_file_of_a_living_writer_stays(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    with whole_file._temporary(tmp_path) as (_, name):
        write_whole(tmp_path / "model", NEW)
        assert name.exists()


WRITER = """
import os, runpy, sys
from pathlib import Path
if sys.argv[3] == "named":
    del os.O_TMPFILE
write_whole = runpy.run_path(sys.argv[1])["write_whole"]
path = Path(sys.argv[2])
print("ready", flush=True)
while True:
    for content in (b"old" * 1000, b"new" * 500_000):
        write_whole(path, content)
"""


@pytest.mark.parametrize("kind", ["nameless", "named"])
def test_kills_tear_nothing_and_leave_nothing(kind, tmp_path, request):
    path = tmp_path / "model"
    command = [sys.executable, "-c", WRITER, whole_file.__file__, str(path), kind]
    for number in range(request.config.getoption("--fuzz") or 5):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(0.001 * (number % 40))
            writer.send_signal(signal.SIGKILL)
        assert not path.exists() or path.read_bytes() in (OLD, NEW)
        if kind == "nameless":  # but for the moment between two system calls
            assert len(names(tmp_path)) <= 2
    write_whole(path, NEW)
    assert names(tmp_path) == ["model"]
