"""The JAX engine by itself: its linear solver, its compilations, the user's JAX around it."""

import os
import re
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import random_params
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score

from pydeq import DEQClassifier, DEQRegressor
from pydeq.engines import get_engine
from pydeq.engines.jax import programs
from pydeq.engines.jax.krylov import MAX_STEPS, solve_linear
from pydeq.errors import EngineUnavailableError
from pydeq.model import ModelSpec, OptimizerSpec, SolverSpec, chunks, padded_size

SPECS = SimpleNamespace(solver=SolverSpec(), optimizer=OptimizerSpec())
MODEL = ModelSpec(n_features=3, n_outputs=2, n_state=5, hidden_layer_sizes=(6,))


def run(code, **environment):
    """Return what a new process prints."""
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def solve(matrices, b, rtol, active=None):
    active = np.ones(len(b), bool) if active is None else active
    with jax.enable_x64(True):
        x, n_products = solve_linear(
            lambda v: jax.numpy.einsum("bij,bj->bi", matrices, v),
            jax.numpy.asarray(b),
            rtol,
            active,
        )
        return np.array(x), np.array(n_products)


# --- GMRES ---


@pytest.mark.parametrize("n", [1, 7, 24])
def test_gmres_solves_each_system_to_its_tolerance(n):
    rng = np.random.default_rng(n)
    matrices = np.eye(n) - 0.7 * rng.normal(size=(4, n, n)) / np.sqrt(n)
    b = rng.normal(size=(4, n))
    x, _ = solve(matrices, b, 1e-10)
    left = np.linalg.norm(b - np.einsum("bij,bj->bi", matrices, x), axis=1)
    assert (left <= 1.01e-10 * np.linalg.norm(b, axis=1)).all()


def test_gmres_needs_no_more_products_than_there_are_eigenvalues():
    matrices = np.stack([np.diag([1.0, 1, 1, 1]), np.diag([1.0, 2, 2, 1]), np.diag([1.0, 2, 3, 4])])
    x, n_products = solve(matrices, np.ones((3, 4)), 1e-12)
    np.testing.assert_allclose(x, 1 / np.diagonal(matrices, axis1=1, axis2=2), rtol=1e-10)
    assert n_products.tolist() == [1, 2, 4]


def test_gmres_is_not_stopped_by_a_rotation():
    # Its field of values holds 0, where methods of the kind of GCR break down.
    x, _ = solve(np.array([[[0.0, 1.0], [-1.0, 0.0]]]), np.array([[1.0, 2.0]]), 1e-12)
    np.testing.assert_allclose(x, [[-2.0, 1.0]], rtol=1e-12)


def test_gmres_ends_on_a_singular_system_and_leaves_others_alone():
    matrices = np.stack([np.diag([1.0, 0.0]), np.eye(2), np.eye(2)])
    x, n_products = solve(matrices, np.ones((3, 2)), 1e-10, np.array([True, True, False]))
    assert np.isfinite(x).all()
    assert n_products[0] < MAX_STEPS
    np.testing.assert_allclose(x[1:], [[1, 1], [0, 0]], atol=1e-12)
    assert n_products[2] == 0


# --- compilations ---


def programs_of(call):
    """Return how many programs `call` was the first to need in this process."""
    before = sum(programs.counts().values())
    call()
    return sum(programs.counts().values()) - before


def open_session(model=MODEL, solver=SPECS.solver, optimizer=SPECS.optimizer):
    return get_engine("jax", "cpu").open(model, solver, optimizer, random_params(model))


def train(n, batch_size, **specs):
    """Return the weights after an epoch."""
    session = open_session(**specs)
    rng = np.random.default_rng(0)
    session.load_data(rng.normal(size=(n, 3)), rng.normal(size=(n, 2)), np.ones(n))
    session.train_epoch(np.arange(n), batch_size)
    return session.params()


def test_an_epoch_needs_three_programs_whatever_its_last_batch():
    assert programs_of(lambda: train(26, 8)) == 3  # what acts, the search, the step
    for n in (25, 17):
        assert programs_of(lambda n=n: train(n, 8)) == 0


def test_a_step_of_a_large_job_is_one_program_with_the_same_result(monkeypatch):
    model = replace(MODEL, n_state=7, stability="contractive")
    weights = train(200, 100, model=model)
    monkeypatch.setattr("pydeq.engines.jax.code.LARGE_JOB", 200)
    again = {}
    assert programs_of(lambda: again.update(train(200, 100, model=model))) == 1
    for name, value in weights.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-8, atol=1e-12)


def test_training_sets_of_about_one_size_share_their_programs():
    train(150, 200)
    assert programs_of(lambda: train(135, 200)) == 0


@pytest.mark.parametrize(("n", "n_predicted"), [(150, 140), (450, 950)])
def test_a_prediction_shares_the_training_s_search(n, n_predicted):
    train(n, 200)
    x = np.zeros((n_predicted, 3))
    assert programs_of(lambda: open_session().equilibrium(x)) == 0


def test_predictions_of_any_size_need_few_programs():
    x = np.random.default_rng(0).normal(size=(3000, 3))
    model = replace(MODEL, n_state=4)

    def predict(*sizes):
        session = open_session(model)
        for n in sizes:
            assert len(session.equilibrium(x[:n]).state) == n

    assert programs_of(lambda: predict(7, 150, 1000)) <= 4  # one is what acts
    assert programs_of(lambda: predict(*range(1, 1100, 40), 3000)) <= 3


def test_other_numbers_need_no_program():
    train(20, 8)
    numbers = {"abstol": 1e-7, "reltol": 1e-5, "max_steps": 77}
    assert programs_of(lambda: train(20, 8, solver=replace(SPECS.solver, **numbers))) == 0
    numbers = {"learning_rate": 0.1, "alpha": 1.0, "train_encoder": False, "seed": 3}
    assert programs_of(lambda: train(20, 8, optimizer=replace(SPECS.optimizer, **numbers))) == 0
    contractive = replace(MODEL, stability="contractive")
    train(20, 8, model=contractive)
    assert programs_of(lambda: train(20, 8, model=replace(contractive, contraction=0.3))) == 0


def test_an_estimator_needs_no_program_that_one_of_its_shape_had():
    X, y = load_iris(return_X_y=True)
    first = DEQClassifier(engine="jax", n_state=6, hidden_layer_sizes=7, max_iter=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        first.fit(X, y).predict(X)
        other = clone(first).set_params(alpha=1.0, learning_rate_init=0.1, contraction=0.5)
        assert programs_of(lambda: other.fit(X, y).predict(X)) == 0
        assert programs_of(lambda: cross_val_score(other, X, y, cv=10)) <= 1  # for 15 rows


def test_the_programs_in_memory_are_bounded(monkeypatch):
    monkeypatch.setattr(programs, "MOST_PROGRAMS", 3)
    session = open_session()
    for n in (10, 100, 150, 200):
        session.equilibrium(np.zeros((n, 3)))
    assert programs_of(lambda: session.equilibrium(np.zeros((200, 3)))) == 0
    assert programs_of(lambda: session.equilibrium(np.zeros((10, 3)))) == 1  # it was let go


def test_a_release_of_xla_without_the_option_compiles_as_well(monkeypatch):
    expected = train(10, 10)
    monkeypatch.setattr(programs, "QUICK", {"no_such_option": True})
    model = replace(MODEL, activation="logistic")
    assert programs_of(lambda: train(10, 10, model=model)) == 2  # what acts is the same
    assert train(10, 10, model=model).keys() == expected.keys()


@pytest.mark.parametrize("n", [1, 8, 9, 50, 51, 200, 257, 1000, 1024, 60000])
def test_padding_is_bounded_and_its_sizes_are_few(n):
    rows = padded_size(n)
    assert n <= rows <= max(50 * -(-n // 50), 200 * -(-n // 200) * (n > 200), 1.125 * n)
    assert len({padded_size(k) for k in range(n, 2 * n)}) <= 10


@pytest.mark.parametrize("n", [1, 50, 150, 501, 999, 1001, 1500, 1501, 10_000])
def test_the_pieces_of_a_prediction_cover_it(n):
    pieces = list(chunks(n))
    assert [i for first, last, _ in pieces for i in range(first, last)] == list(range(n))
    assert all(last - first <= rows for first, last, rows in pieces)
    assert sum(rows for *_, rows in pieces) < n + (
        50 if n <= 200 else 200 if n % 1000 <= 500 else 500
    )
    assert {rows for *_, rows in pieces} <= {50, 100, 150, 200, 1000}


# --- the user's own JAX ---


def test_the_users_configuration_is_left_alone():
    code = """
        import jax, numpy as np, pydeq
        before = dict(jax.config.values)
        X = np.linspace(-1, 1, 12)[:, None]
        model = pydeq.DEQRegressor(
            max_iter=2, n_state=3, hidden_layer_sizes=2, engine="jax", solver="fixed_point"
        )
        assert model.fit(X, X[:, 0]).predict(X).dtype == np.float64
        assert dict(jax.config.values) == before
        assert jax.numpy.ones(2).dtype == np.float32
        jax.config.update("jax_enable_x64", True)
        assert model.fit(X.astype("f4"), X[:, 0]).predict(X.astype("f4")).dtype == np.float32
        print("ok")
    """
    assert run(code) == "ok\n"


def test_a_device_that_is_not_there_is_named_with_what_is():
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineUnavailableError, match=r"'cuda'.*JAX sees only cpu.*pydeq\[cuda\]"):
        DEQRegressor(engine="jax", device="cuda").fit([[0.0], [1.0]], [0.0, 1.0])


SETTINGS = {
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_TRANSFER_GUARD": "disallow",
    "JAX_DISABLE_JIT": "1",
    "JAX_DEBUG_NANS": "1",
    "JAX_DEBUG_INFS": "1",
    "JAX_CHECK_TRACER_LEAKS": "1",
    "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
    "JAX_ENABLE_X64": "1",
}


def test_a_session_works_whatever_jax_is_set_to(capsys):
    code = """
        import numpy as np, pydeq, warnings
        X = np.linspace(-1, 1, 12, dtype="f4")[:, None]
        warnings.simplefilter("ignore")
        model = pydeq.DEQRegressor(
            max_iter=2, n_state=3, hidden_layer_sizes=2, engine="jax", random_state=0
        )
        print(*model.fit(X, X[:, 0]).predict(X)[:3])
    """
    with warnings.catch_warnings():
        exec(textwrap.dedent(code), {})
    plain = capsys.readouterr().out
    assert len(plain.split()) == 3
    assert run(code, PYDEQ_CACHE_DIR="", **SETTINGS) == plain


def test_platforms_that_are_not_there_are_named():
    code = """
        import pydeq
        from pydeq.cli.doctor import report
        try:
            pydeq.DEQRegressor(engine="jax").fit([[0.0], [1.0]], [0.0, 1.0])
        except pydeq.errors.EngineUnavailableError as error:
            print(error)
        print("\\n".join(report()))
    """
    said = run(code, JAX_PLATFORMS="abacus")
    assert said.startswith("JAX finds no device to work on: ")
    assert "JAX_PLATFORMS='abacus'" in said
    assert "takes jax" not in said


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told_what_to_do():
    code = """
        import os, sys, warnings, numpy as np, pydeq
        warnings.simplefilter("ignore")
        X = np.linspace(-1, 1, 12)[:, None]
        model = pydeq.DEQRegressor(max_iter=2, n_state=3, hidden_layer_sizes=2, engine="jax")
        model.fit(X, X[:, 0])
        if os.fork() == 0:
            for call in (lambda: model.predict(X), lambda: model.fit(X, X[:, 0])):
                try:
                    call()
                except pydeq.errors.EngineUnavailableError as error:
                    words = str(error)
                    print(all(w in words for w in ("spawn", "forkserver", "loky")))
            sys.stdout.flush()
            os._exit(0)
        os.wait()
        print(model.predict(X).shape)
    """
    assert run(code) == "True\nTrue\n(12,)\n"


# --- weights that are very large ---


@pytest.mark.parametrize(("dtype", "size"), [("f4", 1e10), ("f4", 1e37), ("f8", 1e200)])
def test_a_contraction_of_very_large_weights_is_that_of_large_ones(dtype, size):
    model = replace(MODEL, stability="contractive", activation="identity")
    solver = SolverSpec("anderson", abstol=1e-6, reltol=1e-6)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(dtype)

    def found(factor):
        params = {
            name: (value * factor if re.fullmatch(r"cell.\d.weight", name) else value).astype(dtype)
            for name, value in random_params(model).items()
        }
        session = get_engine("jax", "cpu").open(model, solver, SPECS.optimizer, params)
        return session.equilibrium(x)

    large, very_large = found(100), found(size)
    assert very_large.converged.all()
    # Both are scaled to the same contraction, so that the size of the weights is gone.
    np.testing.assert_allclose(very_large.state, large.state, atol=1e-4)
    assert np.ptp(very_large.state, axis=0).min() > 1e-2  # not a constant
