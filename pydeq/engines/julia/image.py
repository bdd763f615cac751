"""A system image: a Julia that has PyDEQ and what it needs loaded when it starts.

It is a file in the project's folder, with a record beside it of what it was built from. Where that
has changed, the image is left alone: it would run the code of before.
"""

import hashlib
import json
import os
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pydeq.engines.julia.notes import (
    BrokenFileError,
    manifest_packages,
    newest_manifest,
    read_record,
)
from pydeq.engines.julia.probe import show
from pydeq.errors import EngineUnavailableError

__all__ = ["BUILD_AGAIN", "Image", "find_image"]

BUILD_AGAIN = "pydeq julia install --sysimage"

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_WORDS = {
    "julia": "Julia",
    "packages": "packages",
    "pydeq": "PyDEQ",
    "juliacall": "juliacall",
    "bytes": "size",
}
_SECONDS = 4 * 3600
"""On two cores it takes a good half hour."""

_ADD_COMPILER = 'using Pkg; Pkg.add(name = "PackageCompiler", version = "2")'


@dataclass(frozen=True)
class Image:
    """The system image of a project, whether or not it is there.

    Attributes
    ----------
    path : pathlib.Path
    executable : str
        The Julia that starts with it.
    sources : pathlib.Path
        Folder of the Julia project that comes with pydeq.
    """

    path: Path
    executable: str
    sources: Path

    @property
    def record_path(self) -> Path:
        """Where it is noted what the image was built from."""
        return self.path.with_suffix(".json")

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return self.path.is_file()

    def objection(self) -> str:
        """Return why the image that is there is not to be used, or nothing."""
        try:
            record = read_record(self.record_path)
        except BrokenFileError as error:
            return f"{error}; {BUILD_AGAIN}"
        now = self._facts()
        other = [word for name, word in _WORDS.items() if record.get(name) != now[name]]
        if not other:
            return ""
        return f"the system image is not used, it is of another {', '.join(other)}; {BUILD_AGAIN}"

    def _facts(self) -> dict[str, str | int]:
        """Return what an image of now is built from, and the size of the one that is there."""
        manifest = newest_manifest(str(self.path.parent))
        return {
            "julia": os.path.realpath(self.executable),
            "packages": _digest([manifest] if manifest else []),
            "pydeq": _digest(
                [self.sources / "Project.toml", *sorted(self.sources.glob("*/**/*.jl"))]
            ),
            "juliacall": metadata.version("juliacall"),
            "bytes": self.path.stat().st_size,
        }

    def packages(self) -> list[str]:
        """Return what is loaded in an image: PyDEQ, PythonCall, what PyDEQ's extensions are for.

        A package that is not in the image but needs one that is would have to be compiled anew.
        """
        project = tomllib.loads((self.sources / "Project.toml").read_text(encoding="utf-8"))
        wanted = set(project["weakdeps"]) - {project["extensions"]["PyDEQCUDAExt"]}
        there = manifest_packages(str(self.path.parent)) or {}
        return ["PyDEQ", "PythonCall", *sorted(wanted & there.keys())]

    def build(self, say: Callable[[str], None]) -> None:
        """Build it, in place of the one that is there.

        Raises
        ------
        EngineUnavailableError
            If that fails; then there is none.
        """
        self.remove()
        builder = self.path.parent / "pydeq-image-builder"
        julia = [self.executable, f"--project={builder}", "--startup-file=no"]
        say("Building a system image: half an hour or more. PackageCompiler says what follows.")
        if newest_manifest(str(builder)) is None:
            builder.mkdir(exist_ok=True)
            self._run([*julia, "-e", _ADD_COMPILER])
        new = self.path.with_stem(f"{self.path.stem}-new")
        script = self.sources / "sysimage" / "build.jl"
        self._run([*julia, str(script), str(self.path.parent), str(new), *self.packages()])
        new.replace(self.path)
        self._record()

    def _record(self) -> None:
        self.record_path.write_text(json.dumps(self._facts(), indent=1), encoding="utf-8")

    def _run(self, command: list[str]) -> None:
        # PythonCall, which is loaded for the image, is to find this Python and install none.
        python = {"JULIA_PYTHONCALL_EXE": sys.executable, "JULIA_CONDAPKG_BACKEND": "Null"}
        code, last = show(command, _SECONDS, python)
        if code:
            raise EngineUnavailableError(
                f"The system image could not be built (exit code {code}). Without it Julia starts "
                f"as before: pydeq julia install --no-sysimage. What was said last:\n{last}"
            )

    def remove(self) -> bool:
        """Delete the image and its record; return whether there was one."""
        existed = self.exists
        for path in (self.record_path, self.path):
            path.unlink(missing_ok=True)
        return existed


def find_image(executable: str, project: str, sources: Path) -> Image:
    """Return the system image of a project, whether or not it is there."""
    return Image(Path(project) / f"pydeq-image{_SUFFIX}", executable, sources)


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
