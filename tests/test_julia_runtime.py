"""What can be said of Julia without having one: what is found, what is refused, what errors say."""

import hashlib
import importlib.util
import json
import logging
import os
import pickle
import runpy
import shutil
import subprocess
import sys
import threading
import tomllib
import types
from importlib import metadata
from pathlib import Path

import juliapkg.state
import numpy as np
import pytest
from click.testing import CliRunner

import pydeq
from pydeq import engines
from pydeq.cli.julia import julia as julia_command
from pydeq.engines.julia import environment, install, runtime
from pydeq.engines.julia.arrays import from_julia, julia_view
from pydeq.errors import EngineError, EngineUnavailableError

ROOT = Path(__file__).resolve().parents[1]
real_choice = engines.auto_choice  # before the tests' own fixture replaces it


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine where nothing of Julia is set up or running, and whose settings are the test's."""
    for name in list(os.environ):
        if name.startswith(("PYTHON_JULIA", "JULIA_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.delitem(sys.modules, "juliacall", raising=False)
    for name, value in [("julia", None), ("failure", None), ("is_fork", False)]:
        monkeypatch.setattr(runtime.Process, name, value)
    monkeypatch.setattr(juliapkg.state, "STATE", juliapkg.state.STATE)
    before = dict(juliapkg.state.STATE)
    juliapkg.state.reset_state()
    yield tmp_path
    juliapkg.state.STATE.clear()
    juliapkg.state.STATE.update(before)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def choice():
    """What `auto` stands for, found out anew."""
    engines.choice_of_main_process.cache_clear()
    try:
        return real_choice()
    finally:
        engines.choice_of_main_process.cache_clear()


def set_env(monkeypatch, **values):
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    juliapkg.state.reset_state()


def make_julia(folder):
    executable = folder / "bin" / "julia"
    executable.parent.mkdir(parents=True)
    # What it says where it is asked for its version, and for libjulia.
    executable.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo julia version 1.11.4; exit; fi\n'
        "printf '/nowhere/libjulia.so\\0/nowhere'\n"
    )
    executable.chmod(0o755)
    return executable


def dependencies():
    project = tomllib.loads((environment.bundled_project() / "Project.toml").read_text())
    return [*project["deps"], "PythonCall"]


def make_project(folder, packages):
    folder.mkdir(parents=True, exist_ok=True)
    versions = {"PythonCall": metadata.version("juliacall")}
    entries = [f'[[deps.{name}]]\nversion = "{versions.get(name, "1.2.3")}"\n' for name in packages]
    (folder / "Manifest.toml").write_text('manifest_format = "2.0"\n' + "\n".join(entries))
    return folder


def record(executable, **changes):
    """Write what juliapkg notes after it has set Julia up."""
    own = environment.OWN_JSON
    meta = {
        "meta_version": juliapkg.deps.META_VERSION,
        "executable": str(executable),
        "version": "1.11.4",
        "libjulia": "/nowhere/libjulia.so",
        "bindir": "/nowhere",
        "override_executable": None,
        "deps_files": {str(own): {"timestamp": 0, "hash_sha256": sha256(own)}},
        **changes,
    }
    path = Path(juliapkg.state.STATE["meta"])
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(meta))


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
    project = make_project(machine / "p", [name for name in dependencies() if name != "Lux"])
    set_env(
        monkeypatch,
        PYTHON_JULIAPKG_EXE=make_julia(machine),
        PYTHON_JULIAPKG_PROJECT=project,
        PYTHON_JULIAPKG_OFFLINE=offline,
    )
    found = environment.find_julia()
    assert "lacks Lux" in found.problem
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
    assert {"pydeq/_julia/Project.toml", "pydeq/_julia/src"} <= included.keys()
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


# --- starting ---


def python(code, **env):
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return result.stdout


def test_importing_starts_nothing():
    code = """
import sys
import pydeq, pydeq.cli.julia, pydeq.compare.task
import pydeq.engines.julia.session, pydeq.engines.julia.install
pydeq.engines.find_engines()
print("juliacall" in sys.modules)
"""
    assert python(code).strip() == "False"


def test_auto_takes_jax_where_no_julia_is_set_up(caplog):
    caplog.set_level(logging.INFO, logger="pydeq")
    assert choice() == "jax"
    assert "has not been set up" in caplog.text


@pytest.fixture
def set_up(machine, monkeypatch):
    """A Julia that is set up but does not start."""
    executable, project = make_julia(machine), make_project(machine / "p", dependencies())
    set_env(monkeypatch, PYTHON_JULIAPKG_EXE=executable, PYTHON_JULIAPKG_PROJECT=project)
    calls = []

    def fail(found):
        calls.append(found)
        raise OSError("libjulia is not what it was\nand more")

    monkeypatch.setattr(runtime, "import_juliacall", fail)
    return calls


def test_auto_takes_jax_where_julia_does_not_start(set_up, caplog):
    assert choice() == "jax"
    assert "libjulia is not what it was" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING


def test_a_start_that_failed_is_not_tried_again(set_up):
    for _ in range(2):
        with pytest.raises(EngineUnavailableError, match="did not start: libjulia") as raised:
            engines.get_engine("julia")
    assert len(set_up) == 1
    assert "pydeq julia install" in str(raised.value)


def test_torch_before_julia_is_warned_about_and_avoided(set_up, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert choice() == "jax"
    assert "torch" in caplog.text
    with (
        pytest.warns(UserWarning, match="before `import torch`"),
        pytest.raises(EngineUnavailableError),
    ):
        engines.get_engine("julia")


def test_another_thread_may_not_use_julia(set_up):
    caught = []

    def work():
        try:
            engines.get_engine("julia")
        except EngineUnavailableError as error:
            caught.extend([str(error), choice()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "in the main thread only" in caught[0]
    assert caught[1] == "jax"
    assert not set_up


FAKE_JULIACALL = """
import os
NAMES = [name for name in os.environ if name.startswith(("PYTHON_JULIA", "JULIA_"))]
ENV = {name: os.environ[name] for name in NAMES}
CONFIG = {"inited": True}
"""


def import_fake(machine, monkeypatch, found):
    folder = machine / "fake" / "juliacall"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(FAKE_JULIACALL)
    monkeypatch.syspath_prepend(str(folder.parent))
    try:
        return runtime.import_juliacall(found).ENV
    finally:
        del sys.modules["juliacall"]


def test_juliacall_is_told_where_julia_is_and_nothing_stays_set(machine, monkeypatch):
    monkeypatch.setenv("PYTHON_JULIACALL_LIB", "/chosen/libjulia.so")
    found = environment.JuliaEnvironment("/j/julia", "/p", "", libjulia="/j/l.so", bindir="/j")
    before = dict(os.environ)
    env = import_fake(machine, monkeypatch, found)
    assert env == {
        "PYTHON_JULIACALL_EXE": "/j/julia",
        "PYTHON_JULIACALL_PROJECT": "/p",
        "PYTHON_JULIACALL_LIB": "/chosen/libjulia.so",
        "PYTHON_JULIACALL_BINDIR": "/j",
        "JULIA_CONDAPKG_BACKEND": "Null",
    }
    assert os.environ.pop("JULIA_CONDAPKG_BACKEND") == "Null"
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, None),
        ({"JULIA_NUM_THREADS": "4"}, "yes"),
        ({"PYTHON_JULIACALL_THREADS": "auto"}, "yes"),
        ({"JULIA_NUM_THREADS": "4", "PYTHON_JULIACALL_THREADS": "1"}, None),
        ({"JULIA_NUM_THREADS": "4", "PYTHON_JULIACALL_HANDLE_SIGNALS": "no"}, "no"),
    ],
)
def test_threads_need_julias_signal_handling(machine, monkeypatch, settings, expected):
    monkeypatch.setenv("JULIA_CONDAPKG_BACKEND", "System")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    env = import_fake(machine, monkeypatch, environment.JuliaEnvironment("j", "p", ""))
    assert env.get("PYTHON_JULIACALL_HANDLE_SIGNALS") == expected
    assert env["JULIA_CONDAPKG_BACKEND"] == "System"


# --- forks ---


def test_a_fork_is_told_so(monkeypatch):
    hooks = types.SimpleNamespace(jl_atexit_hook=None)
    fake = types.SimpleNamespace(
        CONFIG={"inited": True, "lib": hooks}, JuliaError=ZeroDivisionError
    )
    monkeypatch.setitem(sys.modules, "juliacall", fake)
    monkeypatch.setattr(runtime.Process, "julia", object())
    assert runtime.start() is runtime.Process.julia
    runtime.become_fork()
    with pytest.raises(EngineUnavailableError, match="set_start_method"):
        engines.get_engine("julia")
    with pytest.raises(EngineUnavailableError, match="forked"), runtime.calling("Training"):
        pass
    hook = hooks.jl_atexit_hook  # juliacall sets this, and calls it, when Python ends
    hook.argtypes = [int]
    assert hook(0) is None


# --- errors ---


class FakeJuliaError(Exception):
    pass


@pytest.fixture
def julia(monkeypatch):
    """A Julia whose exceptions are (type, message, trace)."""
    fake = types.SimpleNamespace(CONFIG={"inited": True}, JuliaError=FakeJuliaError)
    monkeypatch.setitem(sys.modules, "juliacall", fake)
    parts = dict.fromkeys(("pydeq", "array", "vector", "strings", "integers", "load_cuda"))
    running = runtime.Julia(**parts, describe=lambda *parts: parts)
    monkeypatch.setattr(runtime.Process, "julia", running)
    return running


def test_julias_errors_are_short_and_keep_the_trace(julia):
    with pytest.raises(EngineError) as raised, runtime.calling("Training"):
        raise FakeJuliaError("DimensionMismatch", "DimensionMismatch: A has\nmore", "the trace")
    assert str(raised.value) == "Training failed in Julia: DimensionMismatch: A has"
    assert raised.value.julia_trace == "the trace"
    assert "julia_trace" in raised.value.__notes__[0]
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (str(copy), copy.julia_trace) == (str(raised.value), "the trace")
    with pytest.raises(EngineError) as raised, runtime.calling("Training"):
        raise FakeJuliaError("MethodError", "x" * 10_000, "")
    assert len(str(raised.value)) < 500


def test_an_interrupt_in_julia_is_pythons(julia):
    with pytest.raises(KeyboardInterrupt), runtime.calling("Training"):
        raise FakeJuliaError("InterruptException", "InterruptException:", "")


def test_other_exceptions_pass(julia):
    with pytest.raises(KeyError), runtime.calling("Training"):
        raise KeyError("x")


# --- arrays ---


@pytest.mark.parametrize("shape", [(5, 3), (4,), (2, 3, 4)])
def test_arrays_cross_without_transposing(shape):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    view = julia_view(array, np.float32)
    assert view.shape == shape[::-1]
    assert view.flags.f_contiguous
    assert np.shares_memory(view, array)
    back = from_julia(view)
    np.testing.assert_array_equal(back, array)
    assert back.flags.c_contiguous
    assert not np.shares_memory(back, array)


def test_arrays_of_another_kind_are_converted():
    array = np.asfortranarray(np.arange(6).reshape(2, 3))
    view = julia_view(array, np.float64)
    assert view.dtype == np.float64
    assert view.flags.f_contiguous
    np.testing.assert_array_equal(view.T, array)


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


def test_install_ends_with_a_test(set_up, monkeypatch):
    monkeypatch.setattr(juliapkg, "resolve", lambda **_: True)
    with pytest.raises(EngineUnavailableError, match="the test failed"):
        install.install_julia(cuda=False, update=False, say=print)


def test_version_is_the_packages():
    project = tomllib.loads((environment.bundled_project() / "Project.toml").read_text())
    assert project["version"] == pydeq.__version__
