"""Every engine's loss and gradient, against the oracle and finite differences."""

import dataclasses

import numpy as np
import pytest
from contract import OPTIMIZER, ORACLE, open_session, small
from helpers import (
    DIFFERENCE_TOLERANCE,
    GRADIENT_TOLERANCE,
    assert_params_near,
    difference_quotient,
    inner,
    norm,
    random_batch,
    random_direction,
    random_params,
    tight,
)

pytestmark = pytest.mark.usefixtures("nothing_kept")

# name: changes of the model, the solver, the optimiser; scale of the cell's weights; dtype
GRADIENTS = {
    "1 state": ({"n_state": 1}, {}, {}, 0.6, "float64"),
    "50 states": ({"n_state": 50}, {}, {}, 0.6, "float64"),
    "51 states": ({"n_state": 51}, {}, {}, 0.6, "float64"),
    "128 states": ({"n_state": 128}, {}, {}, 0.6, "float64"),
    "no encoder": ({"n_state": None, "n_outputs": 3}, {}, {}, 0.6, "float64"),
    "anderson": (
        {"hidden_layer_sizes": (5, 4), "activation": "relu"},
        {"name": "anderson"},
        {"loss": "log_loss"},
        0.6,
        "float64",
    ),
    "newton": (
        {"activation": "logistic"},
        {"name": "newton"},
        {},
        0.6,
        "float64",
    ),
    "fixed point, affine": (
        {"hidden_layer_sizes": ()},
        {"name": "fixed_point"},
        {},
        0.6,
        "float64",
    ),
    "frozen encoder": ({}, {}, {"train_encoder": False}, 0.6, "float64"),
    "jfb": ({"activation": "identity"}, {"adjoint": "jfb"}, {}, 0.6, "float64"),
    "jfb, contractive": (
        {"stability": "contractive"},
        {"adjoint": "jfb", "name": "anderson"},
        {"loss": "log_loss"},
        3.0,
        "float64",
    ),
    "unrolled": ({}, {"adjoint": "unrolled"}, {"loss": "log_loss"}, 0.6, "float64"),
    "unrolled fixed point, contractive": (
        {"stability": "contractive"},
        {"adjoint": "unrolled", "name": "fixed_point"},
        {},
        3.0,
        "float64",
    ),
    "unrolled anderson": ({}, {"adjoint": "unrolled", "name": "anderson"}, {}, 0.6, "float64"),
    "jacobian": (
        {"stability": "jacobian"},
        {},
        {"loss": "log_loss", "jacobian_penalty": 0.7, "seed": 3},
        0.6,
        "float64",
    ),
    "jacobian, jfb, no encoder": (
        {"stability": "jacobian", "n_state": None, "n_outputs": 3, "activation": "logistic"},
        {"adjoint": "jfb", "name": "fixed_point"},
        {"jacobian_penalty": 0.7},
        1.0,
        "float64",
    ),
    "contractive": (
        {"stability": "contractive", "hidden_layer_sizes": (5, 9), "contraction": 0.7},
        {},
        {},
        3.0,
        "float64",
    ),
    "finite horizon, contractive": (
        {"horizon": 1.5, "stability": "contractive"},
        {},
        {"loss": "log_loss"},
        3.0,
        "float64",
    ),
    "broyden": ({"activation": "relu"}, {"name": "broyden"}, {}, 0.6, "float64"),
    "monotone": (
        {"stability": "monotone", "n_state": 51, "hidden_layer_sizes": ()},
        {"name": "peaceman_rachford"},
        {"loss": "log_loss"},
        0.6,
        "float64",
    ),
    "monotone, jfb, no encoder": (
        {"stability": "monotone", "n_state": None, "n_outputs": 3, "hidden_layer_sizes": ()},
        {"name": "newton", "adjoint": "jfb"},
        {},
        0.6,
        "float64",
    ),
    "monotone, unrolled": (
        {"stability": "monotone", "hidden_layer_sizes": (), "activation": "logistic"},
        {"name": "peaceman_rachford", "adjoint": "unrolled"},
        {},
        0.6,
        "float64",
    ),
    "monotone, finite horizon": (
        {"stability": "monotone", "hidden_layer_sizes": (), "horizon": 1.5},
        {},
        {},
        0.6,
        "float64",
    ),
    "float32, 51 states, contractive": (
        {"n_state": 51, "stability": "contractive"},
        {"name": "anderson"},
        {"loss": "log_loss"},
        3.0,
        "float32",
    ),
    "float32, unrolled, jacobian": (
        {"stability": "jacobian"},
        {"adjoint": "unrolled", "name": "fixed_point"},
        {"jacobian_penalty": 0.7},
        0.6,
        "float32",
    ),
}


def gradient_case(name):
    model_changes, solver_changes, optimizer_changes, scale, dtype = GRADIENTS[name]
    model = small(**model_changes)
    optimizer = dataclasses.replace(OPTIMIZER, **optimizer_changes)
    params = random_params(model, dtype=dtype, scale=scale)
    batch = random_batch(model, optimizer, dtype=dtype)
    return (model, tight(dtype, **solver_changes), optimizer, params), batch, dtype


@pytest.mark.parametrize("case", GRADIENTS)
def test_loss_and_gradient_are_the_oracles(engine, case):
    args, batch, dtype = gradient_case(case)
    loss, grad = open_session(engine, *args).loss_and_grad(*batch)
    expected_loss, expected_grad = ORACLE.open(*args).loss_and_grad(*batch)
    assert isinstance(loss, float)
    assert loss == pytest.approx(expected_loss, rel=GRADIENT_TOLERANCE[dtype])
    assert_params_near(grad, expected_grad, GRADIENT_TOLERANCE[dtype])
    assert {value.dtype for value in grad.values()} == {np.dtype(dtype)}


@pytest.mark.parametrize(
    "case",
    [
        "51 states",
        "no encoder",
        "contractive",
        "finite horizon, contractive",
        "unrolled fixed point, contractive",
        "monotone",
    ],
)
def test_gradient_is_the_difference_quotient_of_the_loss(engine, case):
    (model, solver, optimizer, params), batch, _ = gradient_case(case)

    def loss(moved):
        return open_session(engine, model, solver, optimizer, moved).loss_and_grad(*batch)[0]

    _, grad = open_session(engine, model, solver, optimizer, params).loss_and_grad(*batch)
    for seed in range(2):
        direction = random_direction(params, seed)
        quotient = difference_quotient(loss, params, direction)
        assert abs(inner(grad, direction) - quotient) <= DIFFERENCE_TOLERANCE * norm(grad)


@pytest.mark.parametrize("case", ["unrolled fixed point, contractive", "unrolled anderson"])
def test_unrolled_gradient_is_that_of_the_iterations_themselves(engine, case):
    # Ended early, the iteration is another function than the equilibrium; this is its gradient.
    # (Not for tsit5: the lengths of its steps are not differentiated.)
    (model, solver, optimizer, params), batch, _ = gradient_case(case)
    early = dataclasses.replace(solver, abstol=1e-3, reltol=1e-3)

    def loss(moved):
        return engine.open(model, early, optimizer, moved).loss_and_grad(*batch)[0]

    _, grad = open_session(engine, model, early, optimizer, params).loss_and_grad(*batch)
    direction = random_direction(params, 0)
    quotient = difference_quotient(loss, params, direction, step=1e-5)
    assert abs(inner(grad, direction) - quotient) <= DIFFERENCE_TOLERANCE * norm(grad)
    # and early it was: the implicit gradient is not the same
    _, implicit = ORACLE.open(model, early, optimizer, params).loss_and_grad(*batch)
    assert abs(inner(implicit, direction) - quotient) > 1e-5 * norm(grad)


def test_gradient_of_a_frozen_encoder_is_zero(engine):
    args, batch, _ = gradient_case("frozen encoder")
    _, grad = engine.open(*args).loss_and_grad(*batch)
    assert not grad["encoder.weight"].any()
    assert not grad["encoder.bias"].any()
    assert grad["cell.0.weight"].any()
