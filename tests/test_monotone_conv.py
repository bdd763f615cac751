"""The monotone convolution: its matrix, its equilibria by every solver, gradients, certificates."""

import dataclasses

import numpy as np
import pytest
from helpers import (
    DIFFERENCE_TOLERANCE,
    STATE_TOLERANCE,
    assert_near,
    difference_quotient,
    inner,
    random_direction,
    random_params,
    tight,
)

from pydeq import DEQClassifier, load
from pydeq.engines import get_engine
from pydeq.layers import Activation, Conv, Dense, Flatten, MeanPool
from pydeq.model import ModelSpec, OptimizerSpec, certify
from pydeq.model.cell import acting_cell, linearize

pytestmark = pytest.mark.usefixtures("nothing_kept")

WIDTH = 2 * 4 * 5


def model_of(padding, kernel_size=2, activation="relu"):
    """Return a model whose state is (2, 4, 5), the input itself."""
    return ModelSpec(
        n_features=WIDTH,
        n_outputs=2,
        n_state=WIDTH,
        hidden_layer_sizes=(),
        activation=activation,
        stability="monotone",
        input_shape=(2, 4, 5),
        encoder=(Conv(2, 1),),
        cell=(Conv(2, kernel_size, padding=padding), Activation(activation)),
    )


X = np.random.default_rng(1).normal(size=(4, WIDTH))
TARGET = np.random.default_rng(2).normal(size=(4, 2))
PADDINGS = ["circular", "zero"]


def opened(model, params, solver):
    return get_engine("jax", "cpu").open(model, solver, OptimizerSpec(), params)


def shift_matrix(kernel, padding):
    """Return the matrix of a cross-correlation with taps at 0, 1, ... of an image (2, 4, 5)."""
    matrix = np.zeros((WIDTH, WIDTH))
    at = np.arange(WIDTH).reshape(2, 4, 5)
    for (o, i, p, q), value in np.ndenumerate(kernel):
        for y, x in np.ndindex(4, 5):
            row, column = (y + p, x + q) if padding == "zero" else ((y + p) % 4, (x + q) % 5)
            if row < 4 and column < 5:
                matrix[at[o, y, x], at[i, row, column]] += value
    return matrix


@pytest.mark.parametrize("padding", PADDINGS)
def test_the_matrix_is_that_of_the_paper(padding):
    model = model_of(padding, activation="identity")
    params = random_params(model, scale=3.0)
    cell = acting_cell(model, params)
    weight = linearize(model, params, cell, X[:1], X[:1]).jacobians()[0].T
    a, b = params["cell.0.weight"], params["cell.0.skew"]
    if padding == "circular":
        # Where A and B have their first tap does not matter to A^T A, and moves B.
        first, second = shift_matrix(a, padding), shift_matrix(b, padding)
        expected = second - second.T - first.T @ first
        assert_near(weight, expected, 1e-12)
    # Of an endless plane: what of A sees the image and lies beside it counts too.
    symmetric = np.linalg.eigvalsh((weight + weight.T) / 2)
    assert symmetric.max() <= 1e-12
    assert symmetric.min() < -1
    skew = (weight - weight.T) / 2
    matrix = shift_matrix(b, padding)
    assert_near(skew, matrix - matrix.T, 1e-12)


@pytest.mark.parametrize("padding", PADDINGS)
def test_equilibria_gradients_and_certificates(padding):
    model = model_of(padding, activation="tanh")
    params = random_params(model, scale=2.0)
    solver = tight(name="peaceman_rachford")
    session = opened(model, params, solver)
    found = session.equilibrium(X)
    assert found.converged.all()
    z = found.state
    here = linearize(model, params, acting_cell(model, params), X, z)
    assert_near(here.value, z, 1e-9)
    for i, step in enumerate(1e-6 * np.eye(WIDTH)[:3]):
        ends = [linearize(model, params, here.cell, X, z + s * step).value for s in (1, -1)]
        assert_near(here.jacobians()[:, i], (ends[0] - ends[1]) / 2e-6, 1e-6)

    _, gradient = session.loss_and_grad(X, TARGET, np.ones(4))
    direction = random_direction(params, 3)
    expected = difference_quotient(
        lambda values: opened(model, values, solver).loss_and_grad(X, TARGET, np.ones(4))[0],
        params,
        direction,
    )
    assert inner(gradient, direction) == pytest.approx(expected, rel=DIFFERENCE_TOLERANCE)
    assert all(np.abs(value).max() > 0 for value in gradient.values())

    near = dataclasses.replace(found, state=z + 1e-3 * X)
    known = certify(model, params, X, near).certificates
    distance = np.linalg.norm(near.state - z, axis=1)
    assert (distance <= known.distance_bound).all()
    assert (known.distance_bound < 100 * distance).all()
    jacobians = linearize(model, params, here.cell, X, near.state).jacobians()
    assert_near(known.spectral_abscissa, np.linalg.eigvals(jacobians).real.max(axis=1) - 1, 1e-12)
    assert (known.spectral_abscissa < 0).all()


@pytest.mark.parametrize("padding", PADDINGS)
def test_strong_weights_in_float32(padding):
    model = model_of(padding, 1 + (padding == "circular"))
    params = random_params(model, scale=6.0)
    exact = opened(model, params, tight(name="peaceman_rachford")).equilibrium(X).state
    single = {name: value.astype("f4") for name, value in params.items()}
    solver = tight("float32", name="peaceman_rachford")
    found = opened(model, single, solver).equilibrium(X.astype("f4"))
    assert found.converged.all()
    assert_near(found.state, exact, 10 * STATE_TOLERANCE["float32"])
    assert acting_cell(model, params).lipschitz > 3  # no contraction: plain iteration would leave


GIVEN = {
    "input_shape": (1, 6, 6),
    "encoder": [Conv(2, 3, stride=2)],
    "cell": [Conv(2, 2, padding="circular"), Activation("tanh")],
    "decoder": [MeanPool(3), Flatten(), Dense(2)],
    "stability": "monotone",
    "max_iter": 2,
    "random_state": 0,
    "engine": "jax",
}


def data():
    x = np.random.default_rng(0).normal(size=(20, 36))
    return x, x[:, 0] > 0


def test_a_fit_and_its_file(tmp_path):
    x, y = data()
    model = DEQClassifier(**GIVEN).fit(x, y)
    assert not any(model.history_.n_failed)
    assert model.params_["cell.0.skew"].shape == (2, 2, 2, 2)
    assert np.isfinite(model.equilibrium(x, certify=True).certificates.distance_bound).all()
    model.save(tmp_path / "model")
    same = load(tmp_path / "model")
    assert same.model_spec_ == model.model_spec_
    np.testing.assert_array_equal(same.predict_proba(x), model.predict_proba(x))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cell": [Conv(2)]}, r"a cell of one layer .*cell=\[Conv\(channels\), Activation"),
        ({"cell": [Conv(2), Activation(), Conv(2)]}, "a cell of one layer"),
        ({"cell": [Conv(2, stride=3), Activation()]}, "without a stride"),
        ({"cell": [Conv(2, 3), Activation()]}, r"cell\[0\].*5 x 5.*it is given \(2, 3, 3\)"),
        ({"cell": [Conv(3, 1), Activation()]}, "cell must give the shape of the state"),
        (
            {"cell": [Conv(2, 2), Activation()], "adjoint": "unrolled"},
            "padded with zeros, whose inner linear solves",
        ),
    ],
)
def test_refused(given, message):
    with pytest.raises(ValueError, match=message):
        DEQClassifier(**{**GIVEN, **given}).fit(*data())
