"""What holds for all tests: how processes share them, what they keep, and where Julia runs.

No test depends on whether a Julia is set up here but those marked `julia`, which need one.
"""

import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from xdist.scheduler import LoadFileScheduling

from pydeq import engines
from pydeq.engines.julia import find_julia, runtime
from pydeq.estimators import base

CACHE = "PYDEQ_CACHE_DIR"
MAPS = Path("/proc/self/maps")
MOST_MAPS = 30_000
"""Linux lets a process have 65,530 memory maps; compiled code takes a few for each program."""


ONE_BY_ONE = (
    *("test_cache", "test_checkpoint_file", "test_cli", "test_cli_fit"),
    *("test_examples", "test_guides", "test_notebooks"),
)


SPARE_THE_COMPILER = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
)


class ByFile(LoadFileScheduling):
    """The tests of a file go to one process, which compiles what they share once.

    Those that use Julia all go to the same, so that one Julia is started. Those of `ONE_BY_ONE`
    share nothing: they come last, and fill what time the other processes leave.
    """

    def _split_scope(self, nodeid):
        if "julia" in nodeid:
            return "julia"
        scope = super()._split_scope(nodeid)
        return nodeid if Path(scope).stem in ONE_BY_ONE else scope


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """One more than there are processors, for the tests that wait for other processes."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(n_cores + 1, 4)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


def pytest_configure(config):
    # Fresh for each run, shared by its processes and those that they start: what one has compiled
    # the others find, and nothing that an earlier run has left can hide a failure.
    if CACHE not in os.environ:
        os.environ[CACHE] = tempfile.mkdtemp(prefix="pydeq-tests-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(CACHE), ignore_errors=True))
    # Processes share the machine, so that a BLAS of many threads would wait for itself in each.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_sessionstart(session):
    # What is tested is not LLVM: without its optimisations the tests take half of the time, and
    # with one part of a program for it to compile, instead of many at once, a sixth less.
    os.environ.setdefault("XLA_FLAGS", " ".join(SPARE_THE_COMPILER))
    # Tracing makes many objects that live on; to look for circles in them takes a tenth of it.
    gc.freeze()
    gc.set_threshold(50_000)


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz",
        type=int,
        default=0,
        metavar="N",
        help="run each fuzzer (tests/test_faults_*.py) on N random cases instead of a few fixed",
    )


@pytest.fixture
def n_cases(request):
    """The number of random cases that a fuzzer tries, and the seed of the first."""
    asked = request.config.getoption("--fuzz")
    return asked or 150


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if item.get_closest_marker("julia") is None:
        return
    if "julia" not in item.nodeid:
        pytest.fail(
            "say 'julia' in its name: it goes by it to the process with Julia", pytrace=False
        )
    found = find_julia()
    if found.ready:
        return
    reason = f"needs Julia, but {found.problem}; what to do: {found.advice}"
    if os.environ.get("PYDEQ_REQUIRE_JULIA") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="module", params=["jax", pytest.param("julia", marks=pytest.mark.julia)])
def engine(request):
    """Each engine, for the tests of the contract; a new one is a name more here.

    ``PYDEQ_TEST_DEVICE=cuda`` holds them to it on a GPU.
    """
    return engines.get_engine(request.param, os.environ.get("PYDEQ_TEST_DEVICE", "cpu"))


@pytest.fixture
def nothing_kept(monkeypatch):
    """Write no program for other processes, where none has a use for it."""
    monkeypatch.setenv(CACHE, "")


@pytest.fixture
def use_engine(monkeypatch):
    """Make the estimators work on an engine that is given."""

    def use(engine):
        monkeypatch.setattr(base, "get_engine", lambda *_: engine)

    return use


@pytest.fixture
def on_oracle(use_engine):
    """Let the estimators work on the numpy oracle."""
    import oracle

    use_engine(oracle.OracleEngine())


@pytest.fixture
def no_engine(monkeypatch):
    """Fail where an engine is asked for."""

    def refuse(*asked):
        raise AssertionError("the engine was asked for before the check")

    monkeypatch.setattr(base, "get_engine", refuse)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine where nothing of Julia is set up or running, and whose settings are the test's."""
    import juliapkg.state

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


@pytest.fixture
def rng():
    """A generator that draws the same in every test."""
    return np.random.default_rng(0)


@pytest.fixture
def close_figures():
    """Leave no figure open."""
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(autouse=True)
def _auto_is_jax(request, monkeypatch):
    if request.node.get_closest_marker("julia") is None:
        monkeypatch.setattr(engines, "auto_choice", lambda: "jax")


@pytest.fixture(autouse=True, scope="module")
def _room_for_compiled_code():
    yield
    if "jax" in sys.modules and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        sys.modules["jax"].clear_caches()
