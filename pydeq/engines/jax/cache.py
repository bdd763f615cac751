"""Compiled programs as files in the user's cache folder, for the next process.

An entry is a header, the whole key and what XLA wrote. What is damaged, of another key or in a
folder that others may write to is as good as not there, and no fault of the cache is an error.
Files come into being by a rename, so that processes may write at once.
"""

import contextlib
import hashlib
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import platformdirs

__all__ = ["MAX_BYTES", "describe", "directory", "find", "is_used", "keep"]

MAX_BYTES = 256 * 2**20
"""What all entries may come to; those that were used longest ago go first."""

VARIABLE = "PYDEQ_CACHE_DIR"
SUFFIX = ".program"
_MAGIC = b"pydeq program 1\n"
_DIGEST = hashlib.sha256
_OLD_SECONDS = 3600
"""A file under way that is older was left by a process that died."""

_log = logging.getLogger(__name__)


def directory() -> Path | None:
    """Return where entries are kept, or None if `VARIABLE` is set to nothing."""
    chosen = os.environ.get(VARIABLE)
    if chosen is None:
        return Path(platformdirs.user_cache_dir("pydeq", appauthor=False)) / "programs"
    return Path(chosen).expanduser() if chosen else None


def jax_has_its_own() -> str | None:
    """Return the folder of JAX's own cache where the user has set one up, else None."""
    config: Any = jax.config
    return config.jax_compilation_cache_dir if config.jax_enable_compilation_cache else None


def is_used() -> bool:
    """Return whether entries are kept here; where JAX has its own cache, that one is used."""
    return directory() is not None and not jax_has_its_own()


def describe() -> str:
    """Say where the cache is and how large, or why there is none."""
    if jax_has_its_own():
        return f"JAX's own, as it is set up: {jax_has_its_own()}"
    if not is_used():
        return f"off, because {VARIABLE} is empty"
    sizes = [stat.st_size for _, stat in _entries()]
    return (
        f"{directory()}: {len(sizes)} programs, {sum(sizes) / 2**20:.1f} MB of at most "
        f"{MAX_BYTES / 2**20:.0f} ({VARIABLE} moves it or, empty, switches it off)"
    )


def find(key: str) -> bytes | None:
    """Return what was kept under `key`, or None."""
    folder = directory()
    try:
        if folder is None or not _is_private(folder):
            return None
        path = folder / _name(key)
        data = path.read_bytes()
        os.utime(path)  # used now
    except OSError:
        return None
    head = _head(key)
    start = len(head) + _DIGEST().digest_size
    content = data[start:]
    if not data.startswith(head) or data[len(head) : start] != _DIGEST(content).digest():
        _log.warning("The cached program %s is damaged and is not used.", path)
        return None
    return content


def keep(key: str, content: bytes) -> None:
    """Keep `content` under `key` if that is possible; then keep to `MAX_BYTES`."""
    folder = directory()
    if folder is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(folder):
            _log.warning("%s can be written to by others; no program is kept there.", folder)
            return
        _write(folder / _name(key), _head(key) + _DIGEST(content).digest() + content)
        _shrink(folder)
    except OSError as error:
        _log.info("A compiled program could not be kept: %s", error)


def _name(key: str) -> str:
    return _DIGEST(key.encode()).hexdigest() + SUFFIX


def _head(key: str) -> bytes:
    return _MAGIC + str(len(key)).encode() + b"\n" + key.encode()


def _is_private(folder: Path) -> bool:
    """Return whether this user alone can have put files there: a program is code."""
    if os.name != "posix":
        return True  # there the user's folders are the user's by their access lists
    stat = folder.stat()
    return stat.st_uid == os.getuid() and not stat.st_mode & 0o022


def _write(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _entries() -> list[tuple[Path, os.stat_result]]:
    found = []
    folder = directory()
    with contextlib.suppress(OSError):
        for path in folder.glob(f"*{SUFFIX}") if folder is not None else ():
            with contextlib.suppress(OSError):  # another process may remove it
                found.append((path, path.stat()))
    return found


def _shrink(folder: Path) -> None:
    """Remove the entries used longest ago while all are too large, and what was left half done."""
    entries = sorted(_entries(), key=lambda entry: entry[1].st_mtime)
    total = sum(stat.st_size for _, stat in entries)
    for path, stat in entries:
        if total <= MAX_BYTES:
            break
        path.unlink(missing_ok=True)
        total -= stat.st_size
    for path in folder.glob("*.part"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _OLD_SECONDS:
                path.unlink(missing_ok=True)
