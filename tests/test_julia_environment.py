"""What is found of a Julia, what is said where something is missing, and the bundled project."""

import hashlib
import importlib.util
import json
import os
import runpy
import shutil
import sys
import tomllib
import types
from importlib import metadata
from pathlib import Path

import juliapkg.state
import pytest
from click.testing import CliRunner
from julia_machine import (
    ROOT,
    choice,
    dependencies,
    make_julia,
    make_project,
    python,
    record,
    set_env,
)

import pydeq
from pydeq import engines
from pydeq.cli.julia import julia as julia_command
from pydeq.engines.julia import environment, install
from pydeq.errors import EngineUnavailableError

pytestmark = pytest.mark.usefixtures("machine")


# --- what is found ---


def test_nothing_is_set_up(machine):
    found = environment.find_julia()
    assert not found.ready
    assert "has not been set up" in found.problem
    assert found.advice == "pydeq julia install"
    with pytest.raises(EngineUnavailableError, match="What to do: pydeq julia install"):
        engines.get_engine("julia")


def test_what_juliapkg_has_set_up_is_found(machine):
    executable = make_julia(machine)
    project = make_project(Path(juliapkg.state.STATE["project"]), ["PyDEQ", "PythonCall"])
    record(executable)
    found = environment.find_julia()
    assert found.ready, found.problem
    assert (found.executable, found.project) == (str(executable), str(project))
    assert (found.version, found.libjulia) == ("1.11.4", "/nowhere/libjulia.so")
    assert engines.find_engines()[0].detail == "takes julia"


def test_what_is_out_of_date_is_said(machine):
    executable = make_julia(machine)
    project = make_project(Path(juliapkg.state.STATE["project"]), ["PyDEQ", "PythonCall"])
    record(executable)
    meta = Path(juliapkg.state.STATE["meta"])
    known = json.loads(meta.read_text())
    own = str(environment.OWN_JSON)

    cases = [
        ({"deps_files": {own: {"hash_sha256": "other"}}}, "before this pydeq"),
        ({"deps_files": {}}, "before this pydeq"),
        ({"executable": str(machine / "gone")}, "no Julia at"),
    ]
    for change, expected in cases:
        meta.write_text(json.dumps({**known, **change}))
        found = environment.find_julia()
        assert expected in found.problem
        assert found.advice == "pydeq julia install"
    meta.write_text(json.dumps(known))
    make_project(project, ["PyDEQ"])
    assert "lacks PythonCall" in environment.find_julia().problem
    (project / "Manifest.toml").unlink()
    assert "manifest" in environment.find_julia().problem


def test_damaged_notes_are_said(machine):
    record("julia")
    meta = Path(juliapkg.state.STATE["meta"])
    meta.write_text("{")
    found = environment.find_julia()
    assert found.problem.startswith(f"{meta} is damaged: ")
    assert found.advice == f"delete {meta}, then pydeq julia install"


def test_a_preinstalled_julia_needs_no_pydeq_in_its_project(machine, monkeypatch):
    executable, project = make_julia(machine), make_project(machine / "p", dependencies())
    set_env(monkeypatch, PYTHON_JULIAPKG_EXE=executable, PYTHON_JULIAPKG_PROJECT=project)
    found = environment.find_julia()
    assert found.ready, found.problem
    assert found.origin == "PYTHON_JULIAPKG_EXE, PYTHON_JULIAPKG_PROJECT"
    assert found.can_install
    set_env(monkeypatch, PYTHON_JULIAPKG_OFFLINE="yes")
    assert environment.find_julia().ready
    assert not environment.find_julia().can_install


@pytest.mark.parametrize("offline", ["yes", "no"])
def test_what_a_preinstalled_project_lacks_is_named(machine, monkeypatch, offline):
    project = make_project(machine / "p", [name for name in dependencies() if name != "NNlib"])
    set_env(
        monkeypatch,
        PYTHON_JULIAPKG_EXE=make_julia(machine),
        PYTHON_JULIAPKG_PROJECT=project,
        PYTHON_JULIAPKG_OFFLINE=offline,
    )
    found = environment.find_julia()
    assert "lacks NNlib" in found.problem
    if offline == "yes":
        assert "Pkg.develop" in found.advice
        assert str(environment.bundled_project()) in found.advice
    else:
        assert found.advice == "pydeq julia install"


def test_the_two_halves_of_juliacall_have_to_match(machine, monkeypatch):
    project = make_project(machine / "p", dependencies())
    manifest = project / "Manifest.toml"
    ours = metadata.version("juliacall")
    manifest.write_text(manifest.read_text().replace(ours, "0.9.1"))
    set_env(monkeypatch, PYTHON_JULIAPKG_EXE=make_julia(machine), PYTHON_JULIAPKG_PROJECT=project)
    found = environment.find_julia()
    assert "has PythonCall 0.9.1" in found.problem
    assert found.advice == "pip install juliacall==0.9.1 (or pydeq julia install)"


def test_an_offline_machine_is_not_told_to_install(machine, monkeypatch):
    set_env(monkeypatch, PYTHON_JULIAPKG_OFFLINE="yes")
    found = environment.find_julia()
    assert "may install nothing here" in found.advice
    assert "PYTHON_JULIAPKG_EXE" in found.advice


def test_juliacalls_own_options_come_first_and_in_pairs(machine, monkeypatch):
    set_env(monkeypatch, PYTHON_JULIACALL_EXE=make_julia(machine))
    assert "only one of" in environment.find_julia().problem
    project = make_project(machine / "p", ["PyDEQ", "PythonCall"])
    set_env(monkeypatch, PYTHON_JULIACALL_PROJECT=project)
    found = environment.find_julia()
    assert found.ready, found.problem
    assert found.project == str(project)


def test_an_options_value_that_juliapkg_refuses_is_said(machine):
    code = "from pydeq.engines.julia.environment import find_julia; print(find_julia().problem)"
    result = python(code, PYTHON_JULIAPKG_PROJECT="relative")
    assert "must be an absolute path" in result


def test_a_julia_that_runs_is_the_one_that_is_found(monkeypatch):
    config = {"inited": True, "exepath": "/some/julia", "project": "/some/project"}
    monkeypatch.setitem(sys.modules, "juliacall", types.SimpleNamespace(CONFIG=config))
    found = environment.find_julia()
    assert found.ready
    assert (found.executable, found.project) == ("/some/julia", "/some/project")


def test_a_damaged_installation_leaves_jax_usable(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "PACKAGE", tmp_path / "pydeq")
    assert "is in none of" in environment.find_julia().problem
    assert choice() == "jax"


# --- the project that pydeq carries ---


def test_juliapkg_json_is_of_the_bundled_project():
    described = json.loads(environment.OWN_JSON.read_text())
    package = described["packages"]["PyDEQ"]
    assert package["dev"]
    folder = (environment.OWN_JSON.parent / package["path"]).resolve()
    assert folder == environment.bundled_project()
    project = (folder / "Project.toml").read_bytes()
    assert tomllib.loads(project.decode())["uuid"] == package["uuid"]
    # juliapkg looks for changes in this file only; so it has to change with the project.
    written = runpy.run_path(str(ROOT / ".hatch" / "juliapkg.py"))["described"](ROOT)
    assert described == written, "it is stale: python .hatch/juliapkg.py"
    assert described["julia"] == tomllib.loads(project.decode())["compat"]["julia"]


def test_juliapkg_finds_it():
    from juliapkg.deps import deps_files, find_requirements

    assert str(environment.OWN_JSON) in deps_files()
    (found,) = [package for package in find_requirements()[1] if package.name == "PyDEQ"]
    assert Path(found.path) == environment.bundled_project()


@pytest.fixture
def build_hook(monkeypatch, tmp_path):
    """The build hook, on a copy of what it reads."""
    for name in (".hatch", "julia", "pydeq/juliapkg.json"):
        source, copy = ROOT / name, tmp_path / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    interface = types.ModuleType("hatchling.builders.hooks.plugin.interface")
    interface.BuildHookInterface = type("BuildHookInterface", (), {"root": str(tmp_path)})
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    path = tmp_path / ".hatch" / "build_hook.py"
    spec = importlib.util.spec_from_file_location("build_hook", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.JuliaProjectHook()


def edit_project(root):
    project = root / "julia" / "Project.toml"
    project.write_text(project.read_text().replace('julia = "1.10"', 'julia = "1.11"'))
    return hashlib.sha256(project.read_bytes()).hexdigest()


def test_a_wheel_carries_it(build_hook, tmp_path):
    digest, data = edit_project(tmp_path), {"force_include": {}}
    build_hook.initialize("standard", data)
    included = {target: source for source, target in data["force_include"].items()}
    for name in ("Project.toml", "calls", "src", "ext", "sysimage"):
        assert included[f"pydeq/_julia/{name}"] == str(tmp_path / "julia" / name)
    described = json.loads(Path(included["pydeq/juliapkg.json"]).read_text())
    assert described["packages"]["PyDEQ"]["path"] == "_julia"
    assert environment.BUNDLED[0] == "_julia"
    assert (described["julia"], described["project_sha256"]) == ("1.11", digest)
    build_hook.finalize("standard", data, "")


def test_an_editable_install_brings_the_description_up_to_date(build_hook, tmp_path):
    digest, data = edit_project(tmp_path), {"force_include": {}}
    build_hook.initialize("editable", data)
    assert not data["force_include"]
    described = json.loads((tmp_path / "pydeq" / "juliapkg.json").read_text())
    assert described["packages"]["PyDEQ"]["path"] == "../julia"
    assert (described["julia"], described["project_sha256"]) == ("1.11", digest)
    build_hook.finalize("editable", data, "")


# --- commands ---


def test_status_says_what_to_type():
    result = CliRunner().invoke(julia_command, ["status"])
    assert result.exit_code == 1
    assert "has not been set up" in result.output
    assert "pydeq julia install" in result.output
    assert str(environment.bundled_project()) in result.output


def test_install_says_what_went_wrong(machine, monkeypatch):
    def fail(**_):
        raise OSError("could not resolve host")

    monkeypatch.setattr(juliapkg, "resolve", fail)
    result = CliRunner().invoke(julia_command, ["install"])
    assert result.exit_code == 1
    assert "could not resolve host" in result.output
    assert "HTTPS_PROXY" in result.output


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_install_says_that_a_folder_is_read_only(machine, monkeypatch):
    project = machine / "p"
    project.mkdir(mode=0o555)
    set_env(monkeypatch, PYTHON_JULIAPKG_PROJECT=project)
    with pytest.raises(EngineUnavailableError, match="PYTHON_JULIAPKG_PROJECT"):
        install.install_julia(cuda=False, update=False, say=print)


def test_install_cannot_install_to_a_file(machine, monkeypatch):
    project = machine / "p"
    project.write_text("")
    set_env(monkeypatch, PYTHON_JULIAPKG_PROJECT=project)
    with pytest.raises(EngineUnavailableError, match="cannot be written to"):
        install.install_julia(cuda=False, update=False, say=print)


def test_version_is_the_packages():
    project = tomllib.loads((environment.bundled_project() / "Project.toml").read_text())
    assert project["version"] == pydeq.__version__
