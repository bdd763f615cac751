"""The float64 cell against that of the oracle, and its derivative against differences of it."""

import numpy as np
import oracle_math as om
import pytest
from helpers import assert_near, random_params

from pydeq.model import ACTIVATIONS, ModelSpec
from pydeq.model.cell import acting_cell, linearize

MODELS = {
    "plain": ModelSpec(3, 2, 6, (5, 8)),
    "no encoder": ModelSpec(3, 3, None, (4,)),
    "contractive": ModelSpec(3, 2, 6, (5, 8), stability="contractive"),
    "monotone": ModelSpec(3, 2, 6, (), stability="monotone", activation="tanh"),
}


def problem(model):
    """Return weights, samples, states, and in the oracle's terms the layers and h."""
    params = random_params(model, scale=3.0)
    rng = np.random.default_rng(1)
    x, z = rng.normal(size=(7, model.n_features)), rng.normal(size=(7, model.state_width))
    h = x if model.n_state is None else x @ params["encoder.weight"] + params["encoder.bias"]
    return params, x, z, om.cell_layers(model, params), h


@pytest.mark.parametrize("name", MODELS)
def test_value_is_the_oracles_within_the_bound_of_its_rounding(name):
    model = MODELS[name]
    params, x, z, layers, h = problem(model)
    here = linearize(model, params, acting_cell(model, params), x, z)
    expected = om.cell(model, layers, z, h)
    assert (np.linalg.norm(here.value - expected, axis=1) <= 2 * here.error).all()
    assert (here.error < 1e-10).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", MODELS)
def test_derivative_is_that_of_the_oracle(name, activation):
    model = ModelSpec(**{**vars(MODELS[name]), "activation": activation})
    params, x, z, layers, h = problem(model)
    here = linearize(model, params, acting_cell(model, params), x, z)
    step = 1e-6 * np.eye(model.state_width)
    for i, row in enumerate(step):
        ahead, behind = om.cell(model, layers, z + row, h), om.cell(model, layers, z - row, h)
        assert_near(here.jacobians()[:, i], (ahead - behind) / 2e-6, 1e-7)
    tangent = np.random.default_rng(2).normal(size=z.shape)
    expected = np.einsum("nij,ni->nj", here.jacobians(), tangent)
    assert_near(here.jvp(tangent), expected, 1e-13)
    assert_near(here.at(np.array([4])).jacobians(), here.jacobians()[[4]], 1e-15)


@pytest.mark.parametrize("name", MODELS)
def test_norms_bound_those_of_the_weights(name):
    model = MODELS[name]
    params, *_ = problem(model)
    cell = acting_cell(model, params)
    exact = [np.linalg.norm(weight, 2) for weight in cell.weights]
    np.testing.assert_allclose(cell.norms, exact, rtol=1e-12)
    assert np.less_equal(exact, cell.norms).all()
    assert (np.prod(exact) <= 0.9) == (name == "contractive")
