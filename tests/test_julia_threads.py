"""How many threads Julia gets, and what becomes of the process's signals."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap

import joblib
import numpy as np
import pytest
from helpers import random_batch, random_params
from julia_machine import set_env

from pydeq.engines import get_engine
from pydeq.engines.julia import threads
from pydeq.model import ModelSpec, OptimizerSpec, SolverSpec

THREADS, HANDLES = "PYTHON_JULIACALL_THREADS", "PYTHON_JULIACALL_HANDLE_SIGNALS"
IGNORE = 1  # the C library's SIG_IGN
SAID = ("JULIA_NUM_THREADS", THREADS, HANDLES, *threads.LIMITS)


@pytest.fixture
def eight_cores(monkeypatch):
    """A Linux machine on which nothing has been said of threads."""
    for name in SAID:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, {THREADS: "8", HANDLES: "yes"}),
        ({"OMP_NUM_THREADS": "4,2"}, {THREADS: "4", HANDLES: "yes"}),
        ({"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "2"}, {THREADS: "2", HANDLES: "yes"}),
        ({"OPENBLAS_NUM_THREADS": "1"}, {}),  # as in joblib's processes, where they are many
        ({"OMP_NUM_THREADS": "dynamic"}, {THREADS: "8", HANDLES: "yes"}),
        ({HANDLES: "no"}, {}),
        ({HANDLES: "yes"}, {THREADS: "8"}),
        ({"JULIA_NUM_THREADS": "1"}, {}),
        ({"JULIA_NUM_THREADS": "4"}, {HANDLES: "yes"}),
        ({THREADS: "auto"}, {HANDLES: "yes"}),
        ({"JULIA_NUM_THREADS": "4", THREADS: "1"}, {}),
        ({"JULIA_NUM_THREADS": "4", HANDLES: "no"}, {}),
    ],
)
def test_what_the_user_says_of_julias_threads_holds(eight_cores, monkeypatch, said, expected):
    set_env(monkeypatch, **said)
    assert threads.thread_options() == expected


def test_julia_has_no_threads_unasked_but_on_linux(eight_cores, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert threads.thread_options() == {}


def test_julias_threads_are_bounded(eight_cores, monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 96)
    assert threads.thread_options()[THREADS] == str(threads.MOST_THREADS)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_julia_keeps_the_signals_that_it_needs_and_no_others(monkeypatch):
    monkeypatch.setenv(HANDLES, "yes")
    monkeypatch.setattr(threads.Signals, "NEEDED", (signal.SIGUSR2,))
    monkeypatch.delitem(sys.modules, "juliacall", raising=False)
    heard, before = [], signal.pthread_sigmask(signal.SIG_BLOCK, [])
    usual = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}

    def listen(number, name):
        signal.signal(number, lambda number, frame: heard.append(name))

    try:
        listen(signal.SIGUSR1, "Python")
        signals = threads.Signals()
        with signals.shared():  # what Julia does
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
            threads.libc().signal(signal.SIGUSR1, IGNORE)
            threads.libc().signal(signal.SIGUSR2, IGNORE)
        listen(signal.SIGUSR2, "another")  # as faulthandler does
        for number in usual:
            os.kill(os.getpid(), number)
        signals.hold()
        os.kill(os.getpid(), signal.SIGUSR2)
        assert heard == ["Python", "another"]
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


MODEL = ModelSpec(n_features=3, n_outputs=2, n_state=6, hidden_layer_sizes=(7,))
N_SAMPLES = 1500  # two parts of what one thread gets at once, and a rest


def digest():
    """Return a hash of all that a prediction of Julia's returns, and of an epoch's weights."""
    params = random_params(MODEL, dtype="float32")
    solver = SolverSpec("tsit5", abstol=1e-3, reltol=1e-3)
    session = get_engine("julia", "cpu").open(MODEL, solver, OptimizerSpec(), params)
    batch = random_batch(MODEL, OptimizerSpec(), n=N_SAMPLES, dtype="float32")
    found = session.equilibrium(batch[0])
    assert found.converged.all()
    session.load_data(*batch)
    session.train_epoch(np.arange(N_SAMPLES), N_SAMPLES // 3)
    arrays = [found.state, found.output, found.residual, found.n_evals, found.converged]
    arrays += session.params().values()
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


@pytest.mark.julia
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there are none unasked")
def test_julias_threads_give_the_same_bits_and_python_keeps_its_signals():
    code = f"""
    import faulthandler, os, signal, sys
    sys.path.insert(0, {os.path.dirname(__file__)!r})
    heard = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: heard.append(number))
    from pydeq.engines.julia import runtime
    from test_julia_threads import digest
    print(digest(), runtime.start().n_threads)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        os.kill(os.getpid(), number)
    print(heard == [signal.SIGTERM, signal.SIGUSR2], signal.pthread_sigmask(signal.SIG_BLOCK, []))
    faulthandler.enable()
    # Both threads make garbage, which one of them stops the other to collect.
    work = "() -> Threads.@threads for i in 1:2; for _ in 1:4000; zeros(10_000); end; end"
    busy = __import__("juliacall").Main.seval(work)
    with runtime.calling("Making garbage"):
        busy()
    print(digest())
    """
    settings = {**os.environ, THREADS: "2"}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    result = subprocess.run(
        command, capture_output=True, encoding="utf-8", timeout=600, env=settings
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [f"{digest()} 2", "True set()", digest()]
