"""Every solver and adjoint with layers, in float64 and by the convolution that float32 has."""

import numpy as np
import pytest
import scipy.integrate
from architecture_cases import model_of
from helpers import (
    DIFFERENCE_TOLERANCE,
    GRADIENT_TOLERANCE,
    STATE_TOLERANCE,
    assert_near,
    assert_params_near,
    difference_quotient,
    inner,
    random_direction,
    random_params,
    tight,
)

from pydeq.engines import get_engine
from pydeq.layers import Activation, Conv, Dense, Flatten, MaxPool
from pydeq.model import OptimizerSpec, SolverSpec, loss
from pydeq.model.cell import acting_cell, linearize
from pydeq.model.forward import forward

pytestmark = pytest.mark.usefixtures("nothing_kept")

# Kernels of even and of odd size, both paddings, and a stride.
GIVEN = {
    "n_features": 36,
    "input_shape": (1, 6, 6),
    "encoder": (Conv(2, 2), MaxPool(2), Conv(3, stride=2)),
    "n_state": 12,
    "decoder": (Flatten(), Dense(3)),
}
CELL = (Conv(2, 2), Activation("tanh"), Conv(3, 2, padding="circular"))
MODEL = model_of(CELL, "contractive", **GIVEN)
X = np.random.default_rng(1).normal(size=(4, 36))
TARGET = np.random.default_rng(2).normal(size=(4, 3))
WEIGHT = np.array([1.0, 2.0, 0.5, 1.0])
PARAMS = random_params(MODEL)


def opened(solver, params=PARAMS, model=MODEL):
    return get_engine("jax", "cpu").open(model, solver, OptimizerSpec(), params)


def gradient(solver, params=PARAMS, model=MODEL):
    dtype = next(iter(params.values())).dtype
    x, target, weight = (array.astype(dtype) for array in (X, TARGET, WEIGHT))
    return opened(solver, params, model).loss_and_grad(x, target, weight)


@pytest.fixture(scope="module")
def exact():
    """Equilibria and gradient by Anderson's method."""
    solver = tight(name="anderson")
    return opened(solver).equilibrium(X).state, gradient(solver)[1]


@pytest.mark.parametrize("name", ["tsit5", "broyden", "newton", "fixed_point"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_solver_finds_the_equilibria(name, dtype, exact):
    solver = tight(dtype, name=name)
    params = {key: value.astype(dtype) for key, value in PARAMS.items()}
    found = opened(solver, params).equilibrium(X)
    assert found.converged.all()
    assert found.state.dtype == dtype
    assert_near(found.state, exact[0], STATE_TOLERANCE[dtype])


@pytest.mark.parametrize("adjoint", ["implicit", "unrolled"])
def test_gradient_in_float32_is_that_in_float64(adjoint, exact):
    params = {key: value.astype("f4") for key, value in PARAMS.items()}
    solver = tight("float32", name="fixed_point", adjoint=adjoint, max_steps=60)
    assert_params_near(gradient(solver, params)[1], exact[1], GRADIENT_TOLERANCE["float32"])


def output_loss(params, state):
    output = forward(MODEL.network.decoder, params, state.reshape(-1, *MODEL.network.state_shape))
    return loss("squared_error", output, TARGET, WEIGHT)


def value_at(model, params, state):
    """Return f(state, h) by the reference."""
    return linearize(model, params, acting_cell(model, params), X, state).value


def test_jfb_is_the_gradient_of_one_step(exact):
    _, found = gradient(tight(name="anderson", adjoint="jfb"))
    direction = random_direction(PARAMS, 3)
    expected = difference_quotient(
        lambda params: output_loss(params, value_at(MODEL, params, exact[0])), PARAMS, direction
    )
    assert inner(found, direction) == pytest.approx(expected, rel=DIFFERENCE_TOLERANCE)


def test_a_horizon_ends_where_scipy_does():
    model = model_of(CELL, horizon=0.7, **GIVEN)
    solver = SolverSpec("tsit5", 1e-10, 1e-10, 200)
    value, found = gradient(solver, model=model)
    field = scipy.integrate.solve_ivp(
        lambda t, u: (value_at(model, PARAMS, u.reshape(4, 12)) - u.reshape(4, 12)).ravel(),
        (0.0, 0.7),
        value_at(model, PARAMS, np.zeros((4, 12))).ravel(),
        method="DOP853",
        rtol=1e-10,
        atol=1e-10,
    )
    end = field.y[:, -1].reshape(4, 12)
    assert value == pytest.approx(output_loss(PARAMS, end), rel=1e-8)
    direction = random_direction(PARAMS, 3)
    expected = difference_quotient(
        lambda params: gradient(solver, params, model)[0], PARAMS, direction
    )
    assert inner(found, direction) == pytest.approx(expected, rel=DIFFERENCE_TOLERANCE)
