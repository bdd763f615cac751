"""Which Julia is set up for pydeq: found without starting it, and without downloading anything."""

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tomllib
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pydeq.engines.julia.image import find_image
from pydeq.engines.julia.notes import BrokenFileError, manifest_packages, read_meta

__all__ = [
    "BUNDLED",
    "INSTALL",
    "OWN_JSON",
    "JuliaEnvironment",
    "bundled_project",
    "find_julia",
    "julia_option",
    "missing_packages",
    "packages_shown",
]

INSTALL = "pydeq julia install"

PACKAGE = Path(__file__).resolve().parents[2]
OWN_JSON = PACKAGE / "juliapkg.json"
BUNDLED = ("_julia", "../julia")
"""Where the Julia project is, seen from the package: in a wheel, and in a source tree."""

STDLIBS = frozenset({"LinearAlgebra", "Logging", "Printf", "Random", "SHA", "Statistics", "TOML"})
"""Come with Julia, whether or not a manifest lists them."""


@dataclass(frozen=True)
class JuliaEnvironment:
    """Where Julia would be started from, and what stands in the way.

    Attributes
    ----------
    executable : str or None
    project : str or None
        Folder of the Julia project that is active when Julia runs.
    origin : str
        Who says so, in words.
    problem : str
        Why Julia cannot be started from here; empty where it can.
    advice : str
        What cures the problem.
    note : str
        What is worth knowing although it is no obstacle.
    can_install : bool
        Whether ``pydeq julia install`` may install to the project.
    version : str or None
        Julia's version, where it is recorded.
    libjulia, bindir : str or None
        Where they are recorded, Julia starts a second sooner.
    image : str or None
        A system image to start from.
    """

    executable: str | None
    project: str | None
    origin: str
    problem: str = ""
    advice: str = ""
    note: str = ""
    can_install: bool = False
    version: str | None = None
    libjulia: str | None = None
    bindir: str | None = None
    image: str | None = None

    @property
    def ready(self) -> bool:
        """Whether Julia can be started, as far as can be seen without starting it."""
        return not self.problem

    def failing(self, problem: str, advice: str) -> "JuliaEnvironment":
        """Return the same environment with a problem."""
        return replace(self, problem=problem, advice=advice)


def find_julia() -> JuliaEnvironment:
    """Return the Julia that the engine would use.

    In this order: the one that runs in this process, the one that juliacall's options name
    (``PYTHON_JULIACALL_EXE`` and ``PYTHON_JULIACALL_PROJECT``), the pre-installed one that
    juliapkg's options name (``PYTHON_JULIAPKG_EXE`` and ``PYTHON_JULIAPKG_PROJECT``), and the one
    that ``pydeq julia install`` has set up.

    Raises nothing: a damaged file, like all else, is a problem of the environment's.
    """
    try:
        return _find_julia()
    except BrokenFileError as error:
        return _broken(JuliaEnvironment(None, None, "juliapkg"), error)
    except Exception as error:  # what others have set up may be broken in many ways
        nothing = JuliaEnvironment(None, None, "nothing")
        problem = f"looking for Julia failed ({type(error).__name__}: {error})"
        return nothing.failing(problem, "correct what it names, or use engine='jax'")


def _broken(found: JuliaEnvironment, error: BrokenFileError) -> JuliaEnvironment:
    # Nothing is to be installed on top of a file that nobody can read.
    advice = f"delete {error.path}, then {INSTALL}"
    return replace(found, can_install=False).failing(str(error), advice)


def _find_julia() -> JuliaEnvironment:
    juliacall: Any = sys.modules.get("juliacall")
    if juliacall is not None and juliacall.CONFIG.get("inited"):
        config = juliacall.CONFIG
        return JuliaEnvironment(config["exepath"], config["project"], "runs in this process")
    nothing = JuliaEnvironment(None, None, "nothing")
    if importlib.util.find_spec("juliacall") is None:
        return nothing.failing("juliacall is not installed", "pip install juliacall")
    if damage := _damage():
        return nothing.failing(damage, "reinstall pydeq")
    return _named_to_juliacall() or _known_to_juliapkg()


def julia_option(name: str) -> str | None:
    """Return one of juliacall's options, as juliacall reads it."""
    value = sys._xoptions.get(f"juliacall-{name.replace('_', '-')}")
    return str(value) if value is not None else os.environ.get(f"PYTHON_JULIACALL_{name.upper()}")


def bundled_project() -> Path:
    """Return the folder of the Julia project that comes with pydeq."""
    places = [(PACKAGE / place).resolve() for place in BUNDLED]
    for folder in places:
        if (folder / "Project.toml").is_file():
            return folder
    raise FileNotFoundError(f"pydeq's Julia project is in none of {', '.join(map(str, places))}")


def _damage() -> str:
    """Return what pydeq's own installation lacks, or nothing."""
    try:
        bundled_project()
    except FileNotFoundError as error:
        return str(error)
    return "" if OWN_JSON.is_file() else f"there is no {OWN_JSON}"


def _named_to_juliacall() -> JuliaEnvironment | None:
    executable, project = julia_option("exe"), julia_option("project")
    if executable is None and project is None:
        return None
    found = JuliaEnvironment(executable, project, "PYTHON_JULIACALL_EXE, PYTHON_JULIACALL_PROJECT")
    if executable is None or project is None:
        return found.failing(
            "only one of PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT is set",
            "set both, or neither",
        )
    return _checked(found)


def _known_to_juliapkg() -> JuliaEnvironment:
    try:
        from juliapkg.deps import META_VERSION
        from juliapkg.state import STATE
    except Exception as error:  # an option's value that juliapkg refuses
        nothing = JuliaEnvironment(None, None, "juliapkg")
        return nothing.failing(f"juliapkg cannot be used: {error}", "correct what it names")
    meta = read_meta(Path(STATE["meta"]), META_VERSION)
    given, project = STATE["override_executable"], STATE["project"]
    is_preinstalled = bool(given) and STATE["project_is_shared"]
    executable = given if is_preinstalled else meta.get("executable")
    found = JuliaEnvironment(
        executable,
        project,
        "PYTHON_JULIAPKG_EXE, PYTHON_JULIAPKG_PROJECT" if is_preinstalled else "juliapkg",
        can_install=not STATE["offline"],
        **_recorded(meta, executable),
    )
    if is_preinstalled:
        return _checked(found)
    if executable is None:
        return found.failing("Julia has not been set up for pydeq", _to_install(found))
    if _own_record(meta) != _hash(OWN_JSON):
        problem = "Julia was set up before this pydeq was installed"
        return found.failing(problem, _to_install(found))
    if given and given != meta.get("override_executable"):
        problem = f"Julia was set up with {executable}, not with {given}"
        return found.failing(problem, _to_install(found))
    checked = _checked(found)
    return replace(checked, note="; ".join(filter(None, [checked.note, _changes(meta)])))


def _to_install(found: JuliaEnvironment) -> str:
    """Return how to get what is missing into the project."""
    if found.can_install:
        return INSTALL
    wanted = json.loads(OWN_JSON.read_text(encoding="utf-8"))["packages"]
    others = ", ".join(f'"{name}"' for name in wanted if name != "PyDEQ")
    return (
        "pydeq may install nothing here. On a machine with a network, make a project with "
        f"julia --project={found.project or 'FOLDER'} -e 'using Pkg; Pkg.develop(path=\""
        f'{bundled_project()}"); Pkg.add([{others}]); Pkg.add(name="PythonCall", '
        f'version="{metadata.version("juliacall")}")\', copy it and the packages '
        "(~/.julia, or JULIA_DEPOT_PATH) here, and set PYTHON_JULIAPKG_EXE to Julia and "
        "PYTHON_JULIAPKG_PROJECT to the project"
    )


def _recorded(meta: dict[str, Any], executable: str | None) -> dict[str, Any]:
    """Return what juliapkg has recorded of `executable`."""
    if meta.get("executable") != executable:
        return {}
    return {name: meta.get(name) for name in ("version", "libjulia", "bindir")}


def _own_record(meta: dict[str, Any]) -> str | None:
    """Return the hash of pydeq's juliapkg.json that was resolved."""
    for path, record in meta.get("deps_files", {}).items():
        if Path(path).is_file() and OWN_JSON.samefile(path):
            return record.get("hash_sha256")
    return None


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _changes(meta: dict[str, Any]) -> str:
    """Return what other packages want of Julia since it was set up, or nothing.

    juliacall would install it now, at the start; pydeq leaves that to the user.
    """
    from juliapkg.deps import deps_files

    changed = sorted(set(deps_files()) ^ set(meta.get("deps_files", {})))
    return f"changed since Julia was set up: {', '.join(changed)}; {INSTALL}" if changed else ""


def _checked(found: JuliaEnvironment) -> JuliaEnvironment:
    """Return the environment with the problem that its files show, if any."""
    assert found.executable is not None
    assert found.project is not None
    executable = shutil.which(found.executable)
    if executable is None:
        cure = _to_install(found) if found.origin == "juliapkg" else f"correct {found.origin}"
        return found.failing(f"there is no Julia at {found.executable}", cure)
    try:
        packages = manifest_packages(found.project)
    except BrokenFileError as error:
        return _broken(found, error)
    if packages is None:
        problem = f"the Julia project {found.project} has no manifest"
        return found.failing(problem, _to_install(found))
    if missing := missing_packages(packages):
        problem = f"the Julia project {found.project} lacks {', '.join(missing)}"
        return found.failing(problem, _to_install(found))
    # The two halves of one program: with different versions, Julia does not start.
    theirs, ours = packages["PythonCall"], metadata.version("juliacall")
    if theirs != ours:
        problem = (
            f"the Julia project {found.project} has PythonCall {theirs}, Python juliacall {ours}"
        )
        advice = f"pip install juliacall=={theirs}"
        return found.failing(problem, f"{advice} (or {INSTALL})" if found.can_install else advice)
    return _imaged(replace(found, executable=executable))


def _imaged(found: JuliaEnvironment) -> JuliaEnvironment:
    """Return the environment with its system image, or a note on why that is not used."""
    image = find_image(str(found.executable), str(found.project), bundled_project())
    if not image.exists:
        return found
    if objection := image.objection():
        return replace(found, note=objection)
    return replace(found, image=str(image.path))


SHOWN = ("PyDEQ", "PythonCall", "Lux", "DiffEqFlux", "OrdinaryDiffEqTsit5", "SteadyStateDiffEq")
SHOWN_TOO = ("SciMLSensitivity", "SciMLBase", "NonlinearSolve", "Zygote", "Optimisers", "CUDA")


def packages_shown(found: JuliaEnvironment) -> dict[str, str]:
    """Return the versions of the packages that matter most, of those that the project has."""
    try:
        packages = (found.project and manifest_packages(found.project)) or {}
    except BrokenFileError:
        return {}
    return {name: packages[name] for name in SHOWN + SHOWN_TOO if packages.get(name)}


def missing_packages(packages: dict[str, str]) -> list[str]:
    """Return what is needed and not among `packages`.

    PyDEQ itself is not needed: where a project has all that it depends on, it is loaded from the
    folder that comes with pydeq.
    """
    needed = {"PythonCall"}
    if "PyDEQ" not in packages:
        project = tomllib.loads((bundled_project() / "Project.toml").read_text(encoding="utf-8"))
        needed |= set(project.get("deps", {})) - STDLIBS
    return sorted(needed - packages.keys())
