"""Writing a file whole or not at all, whatever stops the writer: a full disk, Ctrl-C, a kill.

The content goes to a file without a name where the system has such (Linux's O_TMPFILE), else to a
temporary one beside the target. A writer holds a lock on its temporary file as long as it lives;
one that nobody holds is left over from a kill, and the next writer in its folder removes it.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where what a kill leaves is not removed
    fcntl = None

__all__ = ["kind_of_file", "write_whole"]

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def kind_of_file(mode: int) -> str:
    """Return in words what `os.stat` says a path is."""
    return _KINDS.get(stat.S_IFMT(mode), "a regular file" if stat.S_ISREG(mode) else "no file")


def write_whole(path: Path, content: bytes) -> None:
    """Make `content` the content of a file in one step; a failure leaves what was there.

    A symbolic link is followed. A file that is there keeps its mode and, where that is permitted,
    its owner; a new one gets what the umask says.

    Raises
    ------
    OSError
        If it cannot be written, or if `path` is a directory, a pipe or a device.
    """
    target = Path(os.path.realpath(path))
    before = _regular(target)
    _remove_leftovers(target.parent)
    with _temporary(target.parent) as (descriptor, name):
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        if before is not None and hasattr(os, "fchmod"):
            with contextlib.suppress(PermissionError):
                os.fchown(descriptor, before.st_uid, before.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
        os.fsync(descriptor)
        if name is None:
            name = _new_name(target.parent)
            # Following the link in /proc needs a dir_fd, which an absolute path does not use.
            os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=descriptor)
        try:
            os.replace(name, target)
        except BaseException:
            name.unlink(missing_ok=True)
            raise


def _regular(target: Path) -> os.stat_result | None:
    """Return the state of a file that may be replaced, None where there is nothing yet."""
    try:
        before = os.stat(target)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(before.st_mode):
        error = IsADirectoryError if stat.S_ISDIR(before.st_mode) else OSError
        number = errno.EISDIR if stat.S_ISDIR(before.st_mode) else errno.EINVAL
        what = f"a file is needed to save to, and this is {kind_of_file(before.st_mode)}"
        raise error(number, what, str(target))
    return before


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[tuple[int, Path | None]]:
    """Yield a locked new file's descriptor and its name, None where it has no name yet."""
    descriptor, name = _create(folder)
    try:
        yield descriptor, name
    except BaseException:
        if name is not None:
            name.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _create(folder: Path) -> tuple[int, Path | None]:
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        try:
            descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
        except OSError as error:
            # What filesystems without it and old kernels say.
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
        else:
            _lock(descriptor)
            return descriptor, None
    while True:
        name = _new_name(folder)
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
        descriptor = os.open(name, flags, 0o666)
        _lock(descriptor)
        if os.fstat(descriptor).st_nlink:  # not taken for a leftover before it was locked
            return descriptor, name
        os.close(descriptor)


def _new_name(folder: Path) -> Path:
    return folder / f".pydeq-{secrets.token_hex(8)}.tmp"


def _lock(descriptor: int) -> None:
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a filesystem without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that no living writer holds."""
    if fcntl is None:
        return
    for name in folder.glob(f".pydeq-{'[0-9a-f]' * 16}.tmp"):
        with contextlib.suppress(OSError):  # another's, in use, or gone
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    name.unlink()
            finally:
                os.close(descriptor)
