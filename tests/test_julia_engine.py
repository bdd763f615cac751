"""The Julia engine at work: what the contract does not ask, in processes as users have them."""

import pickle
import subprocess
import sys
import textwrap
import time
import warnings

import numpy as np
import pytest
from helpers import random_batch, random_params

from pydeq import DEQClassifier, DEQRegressor, presets
from pydeq.datasets import load_digits
from pydeq.engines import get_engine
from pydeq.engines.julia import runtime
from pydeq.engines.julia.install import self_test
from pydeq.errors import ConvergenceWarning, EngineError
from pydeq.model import ModelSpec, OptimizerSpec, SolverSpec

pytestmark = pytest.mark.julia

MODEL = ModelSpec(n_features=3, n_outputs=2, n_state=6, hidden_layer_sizes=(7,))


def python(code, timeout=600):
    """Run code in a process of its own; return what it printed."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=timeout)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_self_test():
    self_test()


def test_versions_are_known():
    versions = runtime.versions()
    assert versions["julia"].startswith("1.")
    assert {"Lux", "DiffEqFlux", "SteadyStateDiffEq", "SciMLSensitivity"} <= versions.keys()


def test_standard_streams_that_are_pipes_stay_blocking():
    code = """
        import sys
        from pydeq.engines.julia.runtime import start
        start()
        print("started", flush=True)
        sys.exit(sys.stdin.readline() != "later\\n")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "started\n"
        time.sleep(1)  # it must wait for the line, not take the empty pipe for a closed one
        process.stdin.write("later\n")
        process.stdin.close()
        assert process.wait(timeout=60) == 0


def test_double_is_the_blogs():
    model = presets.double(engine="julia").fit(*presets.double_data())
    assert model.engine_ == "julia"
    assert model.predict([[-5.0]])[0] == pytest.approx(-10, abs=0.2)
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.predict([[-5.0]]), model.predict([[-5.0]]))


def test_digits_are_learned_alike():
    X, y, X_test, y_test = load_digits()
    scores = {}
    for engine in ("julia", "jax"):
        model = DEQClassifier(
            n_state=20, learning_rate_init=0.02, max_iter=5, random_state=0, engine=engine
        )
        scores[engine] = model.fit(X, y).score(X_test, y_test)
    assert scores["julia"] == pytest.approx(scores["jax"], abs=0.02)
    assert scores["julia"] > 0.8


def test_a_lost_equilibrium_does_not_hang():
    # The slope of the cell is above 1: every search runs away, until max_steps ends it.
    model = DEQRegressor(
        n_state=None, hidden_layer_sizes=(), stability="none", engine="julia", max_steps=50
    )
    X = np.linspace(1, 2, 10)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, X[:, 0])
    model.params_ = {"cell.0.weight": np.array([[1.5]]), "cell.0.bias": np.array([0.1])}
    with pytest.warns(ConvergenceWarning, match="10 of 10 samples"):
        model.predict(X)


def test_what_the_engine_has_not_is_said():
    solver = SolverSpec("newton", adjoint="unrolled")
    with pytest.raises(ValueError, match=r"unrolled.*fixed_point"):
        get_engine("julia", "cpu").open(MODEL, solver, OptimizerSpec(), random_params(MODEL))


def test_wrong_shapes_are_said():
    session = get_engine("julia", "cpu").open(
        MODEL, SolverSpec(), OptimizerSpec(), random_params(MODEL)
    )
    with pytest.raises(EngineError, match="search for equilibria failed in Julia") as raised:
        session.equilibrium(np.zeros((2, 4)))
    assert "Stacktrace" in raised.value.julia_trace
    x, _, _ = random_batch(MODEL, OptimizerSpec())
    assert session.equilibrium(x).converged.all()  # and the session goes on


def test_auto_takes_julia():
    code = """
        from pydeq.engines import get_engine
        print(get_engine("auto", "cpu").name)
    """
    assert python(code) == "julia"


# A session that trains for minutes if nothing stops it.
LONG = """
    import numpy as np
    from pydeq.engines import get_engine
    from pydeq.model import ModelSpec, OptimizerSpec, SolverSpec

    model = ModelSpec(2, 2, None, (3,))
    shapes = {"cell.0.weight": (2, 3), "cell.0.bias": (3,), "cell.1.weight": (3, 2),
              "cell.1.bias": (2,)}
    params = {name: np.full(shape, 0.1) for name, shape in shapes.items()}
    session = get_engine("julia", "cpu").open(model, SolverSpec(), OptimizerSpec(), params)
    session.load_data(np.ones((8, 2)), np.ones((8, 2)), np.ones(8))
    session.train_epoch(np.arange(8), 8)
    before = session.params()
    epoch = np.zeros(4_000_000, np.int64)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends itself a POSIX signal")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_ctrl_c_is_heard_between_batches(monkeypatch, n_threads):
    monkeypatch.setenv("PYTHON_JULIACALL_THREADS", str(n_threads))
    code = f"""
    import signal
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    {LONG}
    import os
    seen = []

    def interrupt(report):
        seen.append(report)
        if len(seen) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        session.train_epoch(epoch, 8, interrupt)
    except KeyboardInterrupt:
        print("heard after", len(seen) < 20)
    after = session.params()
    print("undone", all((after[name] == before[name]).all() for name in before))
    session.train_epoch(np.arange(8), 8)
    print("goes on")
    """
    assert python(code).splitlines() == ["heard after True", "undone True", "goes on"]


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs os.fork")
def test_a_fork_is_told_so_and_ends():
    code = f"""{LONG}
    import os, sys, warnings
    from pydeq.errors import EngineUnavailableError
    warnings.simplefilter("ignore")
    sys.stdout.flush()
    child = os.fork()
    try:
        session.params() if child == 0 else None
    except EngineUnavailableError as error:
        print("set_start_method" in str(error))
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    print(status, len(session.params()))
    """
    assert python(code).splitlines() == ["True", "0 4"]


def test_other_threads_take_jax():
    code = f"""{LONG}
    import threading
    from pydeq.errors import EngineUnavailableError
    def work():
        print(get_engine("auto", "cpu").name)
        try:
            session.params()
        except EngineUnavailableError as error:
            print("main thread only" in str(error))
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    print(get_engine("auto", "cpu").name)
    """
    assert python(code).splitlines() == ["jax", "True", "julia"]


def test_estimators_work_in_joblibs_processes():
    code = """
        import numpy as np
        from sklearn.model_selection import cross_val_score
        from pydeq import DEQRegressor
        X = np.random.default_rng(0).normal(size=(60, 2))
        model = DEQRegressor(n_state=4, engine="julia", max_iter=20, random_state=0)
        print(len(cross_val_score(model, X, X[:, 0], cv=2, n_jobs=2)))
    """
    assert python(f"if True:\n{code}") == "2"
