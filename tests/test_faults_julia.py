"""Damaged Julia environments: `auto` is JAX, and what is wrong with which file is said.

And Julias that never answer, which are asked for no longer than there is time.
"""

import json
import logging
import os
from pathlib import Path

import juliapkg.state
import numpy as np
import pytest
from click.testing import CliRunner
from julia_machine import (
    choice,
    dependencies,
    make_julia,
    make_project,
    record,
    set_env,
)
from test_faults_model_file import damaged

from pydeq.cli.doctor import doctor
from pydeq.cli.julia import julia as julia_command
from pydeq.engines import find_engines
from pydeq.engines.julia import environment, install, probe
from pydeq.errors import EngineUnavailableError

pytestmark = pytest.mark.usefixtures("machine")


@pytest.fixture
def working(machine):
    """A Julia that is set up; the paths of its manifest and of juliapkg's notes."""
    project = make_project(Path(juliapkg.state.STATE["project"]), dependencies())
    record(make_julia(machine))
    assert environment.find_julia().ready
    return {"manifest": project / "Manifest.toml", "meta": Path(juliapkg.state.STATE["meta"])}


def as_link(path):
    path.unlink()
    path.symlink_to("nowhere")


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def as_folder(path):
    path.unlink()
    path.mkdir()


def bytes_of(content):
    return lambda path: path.write_bytes(content)


def meta_with(**changes):
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


KINDS = {
    "not UTF-8": bytes_of(b"\xff\xfe = 1"),
    "50 MB": bytes_of(b"#" * 50_000_000),
    "deep TOML": bytes_of(b"a = " + b"[" * 100_000),
    "deep JSON": bytes_of(b'{"a": ' + b"[" * 100_000),
    "a dangling link": as_link,
    "a pipe": as_pipe,
    "a folder": as_folder,
    "empty": bytes_of(b"["),
}
BROKEN_MANIFESTS = {
    "deps is a list": bytes_of(b"deps = [1]"),
    "an entry is a string": bytes_of(b'[deps]\nLux = "1.2"'),
    "an entry is empty": bytes_of(b"[deps]\nLux = []"),
    "an entry is a table": bytes_of(b'[deps.Lux]\nversion = "1"'),
    "an entry is a list of strings": bytes_of(b'[deps]\nLux = ["1"]'),
    "a version is a number": bytes_of(b"[[deps.Lux]]\nversion = 1"),
    **KINDS,
}
BROKEN_NOTES = {
    "executable": meta_with(executable=3),
    "deps_files": meta_with(deps_files=["a"]),
    "a record": meta_with(deps_files={"a": "b"}),
    "libjulia": meta_with(libjulia={}),
    "override_executable": meta_with(override_executable=[]),
    "a list": bytes_of(b"[1]"),
    "an object cut off": bytes_of(b'{"meta_version"'),
    **KINDS,
}
BROKEN = [("manifest", kind, BROKEN_MANIFESTS[kind]) for kind in BROKEN_MANIFESTS] + [
    ("meta", kind, BROKEN_NOTES[kind]) for kind in BROKEN_NOTES
]


@pytest.mark.parametrize(("which", "damage"), [(w, d) for w, _, d in BROKEN])
def test_a_damaged_file_is_named_and_auto_is_jax(which, damage, working, caplog):
    path = working[which]
    damage(path)
    caplog.set_level(logging.INFO, logger="pydeq")
    found = environment.find_julia()
    assert found.problem.startswith(f"{path} is damaged: ")
    assert len(found.problem) < 1000
    assert found.advice == f"delete {path}, then pydeq julia install"
    assert choice() == "jax"
    assert f"JAX ({path} is damaged" in caplog.text
    with pytest.raises(EngineUnavailableError, match="is damaged"):
        install.install_julia(cuda=False, update=False, say=print)


@pytest.mark.parametrize("which", ["manifest", "meta"])
def test_doctor_and_status_say_what_is_wrong(which, working):
    working[which].write_bytes(b"\xff")
    status = CliRunner().invoke(julia_command, ["status"])
    assert status.exit_code == 1
    assert f"no: {working[which]} is damaged" in status.output
    report = CliRunner().invoke(doctor)
    assert report.exit_code == 0, report.output
    assert f"not usable: {working[which]} is damaged" in report.output
    assert "auto          takes jax" in report.output


@pytest.mark.parametrize("which", ["manifest", "meta"])
def test_notes_at_random(which, working, n_cases):
    path = working[which]
    content = path.read_bytes()
    for seed in range(n_cases):
        path.write_bytes(damaged(content, np.random.default_rng(seed)))
        found = environment.find_julia()
        assert found.ready or (found.problem and found.advice)
        assert install.julia_status()


def test_whatever_else_fails_is_a_problem_too(monkeypatch):
    monkeypatch.setattr(environment, "_damage", lambda: 1 / 0)
    assert "looking for Julia failed (ZeroDivisionError" in environment.find_julia().problem
    assert choice() == "jax"


def test_no_engine_is_not_called_one(monkeypatch):
    report = find_engines()
    assert report[0].detail == "takes jax"
    broken = type(report[1])("jax", False, "broken")
    monkeypatch.setattr("pydeq.engines._find", lambda *_: broken)
    auto = find_engines()[0]
    assert not auto.usable
    assert auto.detail == "has none to take"


# --- a Julia that does not answer ---

SLEEPS = "#!/bin/sh\nsleep 1000 & sleep 1000\n"
PRINTS = "#!/bin/sh\nwhile :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done\n"


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def sleepers():
    """The processes that a script above has left running."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(entry.read_bytes())
        except OSError:  # it has ended meanwhile
            continue
    return [line for line in lines if line == b"sleep\x001000\x00"]


def test_a_julia_that_sleeps_is_given_up_with_all_it_started(tmp_path):
    julia = script(tmp_path / "julia", SLEEPS)
    with pytest.raises(probe.NoEndError, match=r"julia gave no answer within 0\.3 seconds"):
        probe.ask([julia, "--version"], seconds=0.3)
    assert not sleepers()


def test_a_julia_that_prints_without_end_is_given_up(tmp_path):
    with pytest.raises(probe.NoEndError, match="prints without end"):
        probe.ask([script(tmp_path / "julia", PRINTS)])


def test_a_julia_that_fails_is_named(tmp_path):
    with pytest.raises(EngineUnavailableError, match="exit code 3"):
        probe.ask([script(tmp_path / "julia", "#!/bin/sh\nexit 3\n")])
    with pytest.raises(EngineUnavailableError, match="cannot be run"):
        probe.ask([str(tmp_path / "nothing")])
    with pytest.raises(EngineUnavailableError, match="where libjulia is"):
        probe.find_library(script(tmp_path / "julia", "#!/bin/sh\necho hello\n"), "project")


@pytest.mark.parametrize("text", [SLEEPS, PRINTS])
def test_auto_is_jax_beside_a_julia_that_does_not_answer(text, machine, monkeypatch, caplog):
    monkeypatch.setattr(probe, "SECONDS", 0.3)
    julia = script(machine / "julia", text)
    project = make_project(machine / "p", dependencies())
    set_env(monkeypatch, PYTHON_JULIAPKG_EXE=julia, PYTHON_JULIAPKG_PROJECT=project)
    assert choice() == "jax"
    assert f"{julia} " in caplog.text
    with pytest.raises(EngineUnavailableError, match="PYTHON_JULIAPKG_EXE to a julia that works"):
        install.install_julia(cuda=False, update=False, say=print)


def test_install_says_how_to_take_another_julia(machine, monkeypatch):
    monkeypatch.setattr(probe, "SECONDS", 0.3)
    script(machine / "julia", SLEEPS)
    monkeypatch.setenv("PATH", f"{machine}:/usr/bin:/bin")
    with pytest.raises(EngineUnavailableError, match="take this one off PATH"):
        install.install_julia(cuda=False, update=False, say=print)
    assert not sleepers()


@pytest.mark.parametrize(
    "code", ["while True: print('a' * 99, file=sys.stderr)", "time.sleep(999)"]
)
def test_the_last_test_of_install_has_an_end(code, working, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(install, "_TEST_SECONDS", 1.5)
    monkeypatch.setattr(probe, "MAX_SHOWN", 10_000)
    python = script(
        tmp_path / "python", f'#!/bin/sh\nexec {os.sys.executable} -c "import sys, time; {code}"\n'
    )
    monkeypatch.setattr(install.sys, "executable", python)
    with pytest.raises(EngineUnavailableError, match="the test failed"):
        install._test(environment.find_julia())
