"""A cell of one's own: what it computes and learns, its file, what is refused."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    DIFFERENCE_TOLERANCE,
    assert_near,
    assert_params_equal,
    difference_quotient,
    inner,
    random_direction,
    random_params,
    tight,
)
from sklearn.base import clone

import pydeq
from pydeq import CellFunction, DEQRegressor
from pydeq.engines import get_engine
from pydeq.engines.base import what_is_missing
from pydeq.engines.jax.code import Code
from pydeq.engines.julia import JuliaEngine
from pydeq.layers import Conv, Dense, Flatten
from pydeq.model import ModelSpec, OptimizerSpec, SolverSpec, certificate

pytestmark = pytest.mark.usefixtures("nothing_kept")

RNG = np.random.default_rng(0)
START = {"weight": RNG.normal(0, 0.2, (4, 4)), "inject": RNG.normal(size=4), "slant": 0.3}
X = RNG.normal(size=(8, 4))
TARGET = RNG.normal(size=(8, 2))


def gated(params, u, h):
    """Return values (1, 2, 2), with an injection that is no sum."""
    inside = params["weight"] @ u.ravel() + params["inject"] * jnp.sin(h.ravel())
    return jnp.tanh(inside).reshape(u.shape) * (1 - params["slant"] * jnp.tanh(h.mean()))


def gated_in_numpy(params, u, h):
    inside = u @ params["cell.weight"].T + params["cell.inject"] * np.sin(h)
    return np.tanh(inside) * (1 - params["cell.slant"] * np.tanh(h.mean(axis=1, keepdims=True)))


OWN = CellFunction(gated, START)
MODEL = ModelSpec(4, 2, 4, (), input_shape=(1, 2, 2), encoder=(Conv(1, 1),), cell=OWN)


def opened(params, solver):
    return get_engine("jax", "cpu").open(MODEL, solver, OptimizerSpec(), params)


def test_states_and_gradients_are_those_of_the_function():
    params = random_params(MODEL) | {f"cell.{n}": np.array(v) for n, v in START.items()}
    solver, weight = tight(name="anderson"), np.ones(8)
    session = opened(params, solver)
    h = X * params["encoder.weight"].item() + params["encoder.bias"].item()
    assert_near(session.trajectory(X, 0)[0], gated_in_numpy(params, 0 * h, h), 1e-12)
    z = session.equilibrium(X).state
    assert_near(gated_in_numpy(params, z, h), z, 1e-9)
    _, gradient = session.loss_and_grad(X, TARGET, weight)
    direction = random_direction(params, 1)
    expected = difference_quotient(
        lambda values: opened(values, solver).loss_and_grad(X, TARGET, weight)[0],
        params,
        direction,
    )
    assert inner(gradient, direction) == pytest.approx(expected, rel=DIFFERENCE_TOLERANCE)
    assert all(np.abs(value).max() > 0 for value in gradient.values())


GIVEN = {
    "input_shape": (1, 2, 2),
    "encoder": [Conv(1, 1)],
    "cell": OWN,
    "decoder": [Flatten(), Dense(2)],
    "stability": "jacobian",
    "random_state": 0,
    "engine": "jax",
    "max_iter": 2,
    "average": False,
}


def test_a_fit_its_checkpoint_and_its_file(tmp_path):
    model = DEQRegressor(**GIVEN).fit(X, TARGET, checkpoint=tmp_path / "fit")
    moved = np.abs(model.params_["cell.weight"] - START["weight"]).max()
    assert 0 < moved < 3 * 2e-3  # two steps of Adam from where it was told to start
    again = clone(model).fit(X, TARGET, checkpoint=tmp_path / "fit")
    assert_params_equal(again.params_, model.params_)
    other = CellFunction(gated, {**START, "slant": 0.2})
    with pytest.raises(ValueError, match="of another fit: digest of params was"):
        clone(model).set_params(cell=other).fit(X, TARGET, checkpoint=tmp_path / "fit")
    assert np.isinf(model.equilibrium(X, certify=True).certificates.distance_bound).all()

    path = tmp_path / "model"
    with pytest.warns(UserWarning, match=r"function gated.*pydeq.load\(path, cell=gated\)"):
        model.save(path)
    with pytest.raises(ValueError, match=r"function gated, which no file has.*got cell=None"):
        pydeq.load(path)
    same = pydeq.load(path, cell=gated)
    np.testing.assert_array_equal(same.predict(X), model.predict(X))
    assert same.model_spec_ == model.model_spec_
    assert same.cell.digest == OWN.digest
    assert pickle.loads(pickle.dumps(model)).get_params() == model.get_params()
    assert "CellFunction(gated, inject: (4,), slant: (), weight: (4, 4))" in repr(model)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_abscissa_is_that_of_its_derivative(dtype):
    x = X.astype(dtype)
    model = DEQRegressor(**GIVEN).fit(x, TARGET)
    found = model.equilibrium(x, certify=True)
    assert found.state.dtype == dtype
    params = {name: np.float64(value) for name, value in model.params_.items()}
    h = x * params["encoder.weight"].item() + params["encoder.bias"].item()
    ends = [
        gated_in_numpy(params, np.float64(found.state) + step, h)
        for step in 1e-6 * np.concatenate([np.eye(4), -np.eye(4)])
    ]
    jacobians = (np.stack(ends[:4], axis=1) - np.stack(ends[4:], axis=1)) / 2e-6
    expected = np.linalg.eigvals(jacobians).real.max(axis=1) - 1
    tolerance = {"float64": 1e-8, "float32": 1e-5}[dtype]
    np.testing.assert_allclose(found.certificates.spectral_abscissa, expected, atol=tolerance)


@pytest.mark.parametrize("width", [certificate.DENSE, certificate.DENSE + 8])
def test_the_abscissa_of_states_of_any_width(width):
    matrix = np.random.default_rng(1).normal(0, 0.9 / np.sqrt(width), (width, width))
    own = CellFunction(lambda params, u, h: params["w"] @ u + h, {"w": matrix})
    model = ModelSpec(width, width, None, (), cell=own)
    session = get_engine("jax", "cpu").open(
        model, SolverSpec(), OptimizerSpec(), {"cell.w": matrix}
    )
    x, state = np.random.default_rng(2).normal(size=(2, 3, width))
    state[1, 4] = np.inf
    found = certificate.spectral_abscissa(model, {}, x, state, session.jvp)
    exact = np.linalg.eigvals(matrix).real.max() - 1
    np.testing.assert_allclose(found, [exact, np.nan, exact], atol=1e-5)
    assert np.isnan(certificate.spectral_abscissa(model, {}, x, state)).all()


def test_a_file_without_a_function_takes_none(tmp_path):
    DEQRegressor(n_state=2, hidden_layer_sizes=2, max_iter=1, engine="jax").fit(X, TARGET).save(
        tmp_path / "model"
    )
    with pytest.raises(ValueError, match="cell= is for a model whose cell is a function"):
        pydeq.load(tmp_path / "model", cell=gated)


def fails(params, u, h):
    return params["no"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cell": gated}, r"cell must be .*CellFunction; got .*CellFunction\(function, params\)"),
        ({"cell": 3}, "cell must be None, Julia code, a CellFunction or a sequence"),
        ({"stability": "contractive"}, "stability='contractive' needs a bound .*'jacobian' or 'no"),
        (
            {"cell": CellFunction(lambda params, u, h: u.ravel(), {"w": 1})},
            r"must return .*\(1, 2, 2\) and float64; it returned shape \(4,\) and float64, of par",
        ),
        ({"cell": CellFunction(lambda params, u, h: (u, h), {"w": 1})}, "it returned tuple"),
        ({"cell": CellFunction(fails, {"w": 1.0})}, r"fails failed, .*w.*\(\).*KeyError: 'no'"),
    ],
)
def test_refused_before_anything_is_computed(given, message):
    model = DEQRegressor(**{**GIVEN, **given})
    with pytest.raises(ValueError, match=message):
        model.fit(X, TARGET)
    assert not hasattr(model, "params_")


@pytest.mark.parametrize(
    ("function", "params", "message"),
    [
        (3, START, "function must be callable"),
        (gated, {}, "params must be a dict with at least one"),
        (gated, [1.0], "params must be a dict"),
        (gated, {"a.b": 1.0}, "a parameter's name must be an identifier"),
        (gated, {"slope": 1.0}, "none of root, slope"),
        (gated, {"w": "one"}, "w must be an array of finite real numbers"),
        (gated, {"w": [1.0, np.nan]}, "finite"),
    ],
)
def test_a_description_that_cannot_be_used(function, params, message):
    with pytest.raises(ValueError, match=message):
        CellFunction(function, params)


def test_no_other_process_and_no_other_engine_has_it():
    assert not Code.of(MODEL, SolverSpec(), OptimizerSpec()).search.is_kept
    missing = what_is_missing(JuliaEngine, MODEL, SolverSpec())
    assert "julia engine does not have a cell that is a Python function; the jax" in missing
    assert CellFunction(fails, START) != OWN
    assert CellFunction(gated, {"weight": 1.0}) != OWN
    assert hash(OWN) == hash(CellFunction(gated, {n: 0 * v for n, v in START.items()}))
