"""The JAX engine by itself: its linear solver, its compilations, the user's JAX around it."""

import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from helpers import random_params

from pydeq import DEQRegressor
from pydeq.engines import get_engine
from pydeq.engines.jax import compiled
from pydeq.engines.jax.gmres import MAX_CYCLES, RESTART, gmres
from pydeq.errors import EngineUnavailableError
from pydeq.model import ModelSpec, OptimizerSpec, SolverSpec, padded_size

MODEL = ModelSpec(n_features=3, n_outputs=2, n_state=5, hidden_layer_sizes=(6,))


def solve_linear(matrices, b, rtol, active=None):
    active = np.ones(len(b), bool) if active is None else active
    with jax.enable_x64(True):
        x, n_products = gmres(
            lambda v: jax.numpy.einsum("bij,bj->bi", matrices, v),
            jax.numpy.asarray(b),
            rtol,
            active,
        )
        return np.array(x), np.array(n_products)


# --- GMRES ---


@pytest.mark.parametrize("n", [1, 7, 3 * RESTART])
def test_gmres_solves_each_system_to_its_tolerance(n):
    rng = np.random.default_rng(n)
    matrices = np.eye(n) - 0.7 * rng.normal(size=(4, n, n)) / np.sqrt(n)
    b = rng.normal(size=(4, n))
    x, _ = solve_linear(matrices, b, 1e-10)
    left = np.linalg.norm(b - np.einsum("bij,bj->bi", matrices, x), axis=1)
    assert (left <= 1.01e-10 * np.linalg.norm(b, axis=1)).all()


def test_gmres_needs_no_more_products_than_there_are_eigenvalues():
    matrices = np.stack([np.diag([1.0, 1, 1, 1]), np.diag([1.0, 2, 2, 1]), np.diag([1.0, 2, 3, 4])])
    x, n_products = solve_linear(matrices, np.ones((3, 4)), 1e-12)
    np.testing.assert_allclose(x, 1 / np.diagonal(matrices, axis1=1, axis2=2), rtol=1e-10)
    assert n_products.tolist() == [1, 2, 4]


def test_gmres_is_not_stopped_by_a_rotation():
    # Its field of values holds 0, where methods of the kind of GCR break down.
    x, _ = solve_linear(np.array([[[0.0, 1.0], [-1.0, 0.0]]]), np.array([[1.0, 2.0]]), 1e-12)
    np.testing.assert_allclose(x, [[-2.0, 1.0]], rtol=1e-12)


def test_gmres_ends_on_a_singular_system_and_leaves_others_alone():
    matrices = np.stack([np.diag([1.0, 0.0]), np.eye(2), np.eye(2)])
    x, n_products = solve_linear(matrices, np.ones((3, 2)), 1e-10, np.array([True, True, False]))
    assert np.isfinite(x).all()
    assert n_products[0] < MAX_CYCLES
    np.testing.assert_allclose(x[1:], [[1, 1], [0, 0]], atol=1e-12)
    assert n_products[2] == 0


# --- compilations ---


def test_an_epoch_compiles_once_whatever_its_last_batch():
    optimizer = OptimizerSpec()
    session = get_engine("jax", "cpu").open(MODEL, SolverSpec(), optimizer, random_params(MODEL))
    rng = np.random.default_rng(0)
    session.load_data(rng.normal(size=(26, 3)), rng.normal(size=(26, 2)), np.ones(26))
    before = compiled.train._cache_size()
    for n in (26, 25, 17):
        session.train_epoch(np.arange(n), 8)
    assert compiled.train._cache_size() == before + 1


def test_predictions_compile_a_few_times_for_any_number_of_samples():
    params = random_params(MODEL)
    session = get_engine("jax", "cpu").open(MODEL, SolverSpec(), OptimizerSpec(), params)
    x = np.random.default_rng(0).normal(size=(1030, 3))
    before = compiled.search._cache_size()
    for n in (1, 3, 8, 1025, 1030):  # each in 8 rows, or a whole chunk and 8
        assert len(session.equilibrium(x[:n]).state) == n
    assert compiled.search._cache_size() == before + 2


def test_other_numbers_compile_nothing():
    params = random_params(MODEL)
    x = np.random.default_rng(0).normal(size=(4, 3))

    def search(**numbers):
        solver = SolverSpec(**numbers)
        get_engine("jax", "cpu").open(MODEL, solver, OptimizerSpec(), params).equilibrium(x)

    search()
    before = compiled.search._cache_size()
    search(reltol=1e-5, abstol=1e-7, max_steps=77)
    assert compiled.search._cache_size() == before


@pytest.mark.parametrize("n", [1, 8, 9, 64, 65, 200, 1000, 1024, 60000])
def test_padding_is_little_and_its_sizes_are_few(n):
    rows = padded_size(n)
    assert n <= rows <= max(8 * -(-n // 8), 1.125 * n)
    octave = {padded_size(k) for k in range(n, 2 * n)}
    assert len(octave) <= 10


# --- the user's own JAX ---


def test_the_users_configuration_is_left_alone():
    code = """
        import jax, numpy as np, pydeq
        before = dict(jax.config.values)
        X = np.linspace(-1, 1, 12)[:, None]
        model = pydeq.DEQRegressor(max_iter=2, n_state=3, hidden_layer_sizes=2, engine="jax")
        assert model.fit(X, X[:, 0]).predict(X).dtype == np.float64
        assert dict(jax.config.values) == before
        assert jax.numpy.ones(2).dtype == np.float32
        jax.config.update("jax_enable_x64", True)
        assert model.fit(X.astype("f4"), X[:, 0]).predict(X.astype("f4")).dtype == np.float32
        print("ok")
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert run.stdout == "ok\n", run.stderr


def test_a_device_that_is_not_there_is_named_with_what_is():
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineUnavailableError, match=r"'cuda'.*JAX sees only cpu.*pydeq\[cuda\]"):
        DEQRegressor(engine="jax", device="cuda").fit([[0.0], [1.0]], [0.0, 1.0])
