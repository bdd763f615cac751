"""Where a search begins: the first guess and what it learns, and epochs of a fixed depth."""

import dataclasses

import numpy as np
import pytest
from helpers import (
    DIFFERENCE_TOLERANCE,
    STATE_TOLERANCE,
    assert_near,
    assert_params_equal,
    difference_quotient,
    inner,
    random_direction,
    random_params,
    tight,
)
from sklearn.base import clone

from pydeq import DEQClassifier, DEQRegressor, load
from pydeq.engines import get_engine
from pydeq.layers import Activation, Dense
from pydeq.model import ModelSpec, OptimizerSpec, SolverSpec, loss
from pydeq.model.cell import acting_cell, linearize
from pydeq.model.forward import forward

pytestmark = pytest.mark.usefixtures("nothing_kept")

DENSE = ModelSpec(3, 2, 4, (5,), stability="contractive")
GUESS = (Dense(3), Activation("tanh"), Dense(4))
LEARNED = dataclasses.replace(DENSE, init=GUESS)
X = np.random.default_rng(1).normal(size=(4, 3))
TARGET = np.random.default_rng(2).normal(size=(4, 2))
WEIGHT = np.array([1.0, 2.0, 0.5, 1.0])


def opened(model, params, solver=None, penalty=0.7):
    optimizer = OptimizerSpec(init_penalty=penalty)
    return get_engine("jax", "cpu").open(model, solver or tight(name="anderson"), optimizer, params)


def values_of(model, params, u):
    """Return f(u, h) of X by the reference."""
    return linearize(model, params, acting_cell(model, params), X, u).value


@pytest.mark.parametrize("init", ["cell", "zero", (), GUESS])
def test_a_search_begins_at_the_guess_and_ends_where_all_do(init):
    model = dataclasses.replace(DENSE, init=init)
    params = random_params(model)
    h = X @ params["encoder.weight"] + params["encoder.bias"]
    zero = np.zeros_like(h)
    session = opened(model, params)
    (start,) = session.trajectory(X, 0)
    if init == "cell":
        expected = values_of(model, params, zero)
    else:
        expected = zero if init == "zero" else forward(model.network.init, params, h)
    assert_near(start, expected, STATE_TOLERANCE["float64"])
    found = session.equilibrium(X)
    assert found.converged.all()
    assert_near(values_of(model, params, found.state), found.state, 1e-8)


@pytest.mark.parametrize(
    "solver",
    [
        tight(name="anderson"),
        tight(name="fixed_point", adjoint="unrolled", max_steps=200),
        SolverSpec(fixed_depth=2, fixed_depth_epochs=1),
    ],
    ids=["implicit", "unrolled", "fixed depth"],
)
def test_gradient_with_a_guess_is_that_of_differences(solver):
    params = random_params(LEARNED)

    def loss_of(values):
        return opened(LEARNED, values, solver).loss_and_grad(X, TARGET, WEIGHT)[0]

    value, gradient = opened(LEARNED, params, solver).loss_and_grad(X, TARGET, WEIGHT)
    for seed in (3, 4):
        direction = random_direction(params, seed)
        expected = difference_quotient(loss_of, params, direction)
        assert inner(gradient, direction) == pytest.approx(expected, rel=DIFFERENCE_TOLERANCE)
    h = X @ params["encoder.weight"] + params["encoder.bias"]
    guess = forward(LEARNED.network.init, params, h)
    if solver.fixed_depth is None:
        state = opened(LEARNED, params).equilibrium(X).state
    else:
        state = values_of(LEARNED, params, values_of(LEARNED, params, guess))
    penalty = 0.7 * np.average(((state - guess) ** 2).mean(axis=1), weights=WEIGHT)
    output = forward(LEARNED.network.decoder, params, state)
    expected = loss("squared_error", output, TARGET, WEIGHT) + penalty
    assert value == pytest.approx(expected, rel=1e-7)
    assert all(np.abs(g).max() > 0 for g in gradient.values())


def data(n=40):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3))
    return x, np.sin(x).sum(axis=1)


FITTED = {
    "n_state": 4,
    "hidden_layer_sizes": 5,
    "init": list(GUESS),
    "fixed_depth": 1,
    "fixed_depth_epochs": 2,
    "random_state": 0,
    "engine": "jax",
    "average": False,
    "learning_rate_init": 0.02,
}


def distance(model, x):
    start, end = model.trajectory(x, 0)[0], model.equilibrium(x).state
    return ((start - end) ** 2).mean()


def test_the_guess_learns_where_the_equilibria_are(tmp_path):
    x, y = data()
    first = DEQRegressor(**FITTED, max_iter=3).fit(x, y, checkpoint=tmp_path / "fit")
    assert not any(first.history_.n_failed)
    # One step does not reach an equilibrium, and the third epoch's searches do.
    assert first.history_.worst_residual[1] > 1e-3 >= first.history_.worst_residual[2]
    assert first.history_.n_evals[1] == 2
    model = DEQRegressor(**FITTED, max_iter=40).fit(x, y)
    assert distance(model, x) < 0.1 * distance(first, x)
    first.save(tmp_path / "model")
    same = load(tmp_path / "model")
    assert same.model_spec_ == first.model_spec_
    assert clone(same).get_params() == {**first.get_params(), "init": GUESS}
    np.testing.assert_array_equal(same.predict(x), first.predict(x))
    again = clone(first).fit(x, y, checkpoint=tmp_path / "fit")
    assert_params_equal(again.params_, first.params_)


def test_calls_of_partial_fit_are_epochs_of_one_fit():
    x, y = data()
    whole = DEQRegressor(**FITTED, max_iter=3, shuffle=False).fit(x, y)
    part = DEQRegressor(**FITTED, shuffle=False)
    for _ in range(3):
        part.partial_fit(x, y)
    residuals = np.array([whole.history_.worst_residual, part.history_.worst_residual]) > 1e-3
    assert (residuals == [True, True, False]).all()
    assert part.set_params(warm_start=True, max_iter=1).fit(x, y).history_.worst_residual[0] <= 1e-3


def test_the_loss_of_a_fixed_depth_is_no_measure_of_those_after():
    x, y = data()
    given = {**FITTED, "tol": 1e9, "n_iter_no_change": 1, "max_iter": 9}
    assert DEQRegressor(**given).fit(x, y).n_iter_ == 2 + 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"init": "first"}, "init must be 'cell', 'zero', 'encoder' or a sequence"),
        ({"init": None}, "init must be 'cell'"),
        ({"init": [3]}, r"init\[0\] must be one of pydeq.layers"),
        ({"init": [Dense(3)]}, r"init must give the shape of the state.*\(4,\); it gives \(3,\)"),
        ({"init_penalty": -1.0}, "init_penalty must be a finite number of at least 0"),
        ({"fixed_depth": 0}, "fixed_depth must be an integer of at least 1"),
        ({"fixed_depth_epochs": 0}, "fixed_depth_epochs must be an integer of at least 1"),
        ({"fixed_depth": 2, "horizon": 1.0}, "fixed_depth=2 .*horizon=1"),
    ],
)
def test_refused(given, message):
    x, y = data()
    model = DEQClassifier(**{**FITTED, "fixed_depth": None, "init": "cell", **given})
    with pytest.raises(ValueError, match=message):
        model.fit(x, y > 0)
