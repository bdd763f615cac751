"""Starting Julia, forks, errors and arrays, as far as they can be tested without one."""

import logging
import os
import pickle
import sys
import threading
import types

import juliapkg
import numpy as np
import pytest
from julia_machine import (
    choice,
    dependencies,
    make_julia,
    make_project,
    python,
    set_env,
)

from pydeq import engines
from pydeq.engines.julia import environment, install, runtime
from pydeq.engines.julia.arrays import to_julia
from pydeq.errors import EngineError, EngineUnavailableError

pytestmark = pytest.mark.usefixtures("machine")


# --- starting ---


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
    parts = dict.fromkeys(("pydeq", "vector", "strings", "integers", "load", "version"))
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
    kind, address, *axes = to_julia(lambda *given: given, array)
    assert (kind, address, tuple(axes)) == ("float32", array.ctypes.data, shape[::-1])


def test_install_ends_with_a_test(set_up, monkeypatch):
    monkeypatch.setattr(juliapkg, "resolve", lambda **_: True)
    with pytest.raises(EngineUnavailableError, match="the test failed"):
        install.install_julia(cuda=False, update=False, say=print)
