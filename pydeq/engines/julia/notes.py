"""Small files that Julia and juliapkg write, read so that a damaged one is a message and no more.

A file is read where it is a regular one of at most `MAX_BYTES`; what it holds is checked for the
types that are used of it.
"""

import json
import os
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = [
    "BrokenFileError",
    "manifest_packages",
    "newest_manifest",
    "read_meta",
    "read_record",
]

MAX_BYTES = 4_000_000
"""A manifest of all that pydeq needs has 100,000."""


class BrokenFileError(ValueError):
    """A file is not what it should be; the message says which, and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged: {reason}")
        self.path = path


def newest_manifest(project: str) -> Path | None:
    """Return the manifest of a Julia project, None where there is none.

    Of several (Julia 1.11 knows one for each of its versions) the newest is taken.
    """
    folder = Path(project)
    manifests = [*folder.glob("Manifest*.toml"), *folder.glob("JuliaManifest*.toml")]
    return max(manifests, key=lambda path: path.lstat().st_mtime, default=None)


def manifest_packages(project: str) -> dict[str, str] | None:
    """Return the versions of the packages in a Julia project's manifest, None without one.

    Raises
    ------
    BrokenFileError
        If the manifest cannot be read.
    """
    newest = newest_manifest(project)
    if newest is None:
        return None
    entries = _read(newest, tomllib.loads).get("deps", {})
    if not isinstance(entries, dict):
        raise BrokenFileError(newest, "its deps are no table")
    return {name: _version(newest, name, entry) for name, entry in entries.items()}


def _version(manifest: Path, name: str, entry: Any) -> str:
    if not isinstance(entry, list) or not entry or not isinstance(entry[0], dict):
        raise BrokenFileError(manifest, f"its entry of {name} is no list of tables")
    version = entry[0].get("version", "")
    if not isinstance(version, str):
        raise BrokenFileError(manifest, f"the version of {name} is no string")
    return version


def read_meta(path: Path, version: int) -> dict[str, Any]:
    """Return what juliapkg has noted; nothing where it has not, or in another version's way.

    Raises
    ------
    BrokenFileError
        If the file cannot be read.
    """
    if not os.path.lexists(path):
        return {}
    meta = _read(path, json.loads)
    if meta.get("meta_version") != version:
        return {}
    for name in ("executable", "version", "libjulia", "bindir", "override_executable"):
        if not isinstance(meta.get(name), str | None):
            raise BrokenFileError(path, f"{name} is no string")
    files = meta.get("deps_files", {})
    if not isinstance(files, dict) or not all(isinstance(file, dict) for file in files.values()):
        raise BrokenFileError(path, "deps_files is no table of tables")
    return meta


def read_record(path: Path) -> dict[str, Any]:
    """Return what pydeq has noted in a JSON file.

    Raises
    ------
    BrokenFileError
        If the file cannot be read.
    """
    return _read(path, json.loads)


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """Return the table that a file holds."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise BrokenFileError(path, "it is a folder, a pipe or a device, not a file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise BrokenFileError(path, f"it has more than {MAX_BYTES} bytes")
        table = parse(content.decode("utf-8"))
    except BrokenFileError:
        raise
    except (OSError, RecursionError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BrokenFileError(path, f"{reason:.200}") from error
    if not isinstance(table, dict):
        raise BrokenFileError(path, "it holds no table")
    return table
