"""The oracle, by closed forms and finite differences: nothing of pydeq's engines is in here."""

import dataclasses

import jax
import numpy as np
import optax
import oracle_math as om
import pytest
from helpers import (
    assert_near,
    assert_params_near,
    difference_quotient,
    entry_direction,
    inner,
    norm,
    random_batch,
    random_direction,
    random_params,
    tight,
)
from oracle import OracleEngine

from pydeq.model import ModelSpec, OptimizerSpec

MODEL = ModelSpec(n_features=3, n_outputs=2, n_state=6, hidden_layer_sizes=(7,))
OPTIMIZER = OptimizerSpec(alpha=0.1)


def open_oracle(model=MODEL, optimizer=OPTIMIZER, params=None, solver=None):
    params = random_params(model) if params is None else params
    return OracleEngine().open(model, solver or tight(), optimizer, params)


def gram_bound(weight):
    """The five Gram iterations, word for word as ModelSpec's docstring has them."""
    gram = weight.T @ weight if weight.shape[1] <= weight.shape[0] else weight @ weight.T
    log_norm = 0.0  # the logarithm of what has been divided out of G^(2^k)
    for _ in range(5):
        size = np.linalg.norm(gram)
        log_norm = 2 * (log_norm + np.log(size))
        gram = (gram / size) @ (gram / size)
    return np.exp((log_norm + np.log(np.linalg.norm(gram))) / 64)


# --- states ---


def test_affine_cell_has_its_closed_form():
    # z = (z + h) W + b  =>  z = (h W + b) (I - W)^-1
    model = dataclasses.replace(MODEL, hidden_layer_sizes=())
    params = random_params(model)
    x, _, _ = random_batch(model, OPTIMIZER)
    found = open_oracle(model, params=params).equilibrium(x)
    weight, bias = params["cell.0.weight"], params["cell.0.bias"]
    h = x @ params["encoder.weight"] + params["encoder.bias"]
    z = (h @ weight + bias) @ np.linalg.inv(np.eye(6) - weight)
    assert_near(found.state, z, 1e-13)
    assert_near(found.output, z @ params["decoder.weight"] + params["decoder.bias"], 1e-13)
    assert found.converged.all()


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("n_state", [1, 50, 128])
def test_states_are_fixed_points_to_rounding(n_state, activation):
    model = dataclasses.replace(MODEL, n_state=n_state, activation=activation)
    session = open_oracle(model)
    x, _, _ = random_batch(model, OPTIMIZER)
    found = session.equilibrium(x)
    assert np.abs(session.cell(found.state, x) - found.state).max() < 1e-13
    assert found.converged.all()


def test_a_slope_above_one_is_not_an_equilibrium_though_newton_would_find_one():
    model = ModelSpec(1, 1, None, ())
    params = {"cell.0.weight": np.array([[1.5]]), "cell.0.bias": np.array([0.1])}
    assert not open_oracle(model, params=params).equilibrium(np.ones((2, 1))).converged.any()


def test_a_slope_below_minus_one_is_stable_for_the_ode():
    model = ModelSpec(1, 1, None, ())
    params = {"cell.0.weight": np.array([[-3.0]]), "cell.0.bias": np.array([0.1])}
    found = open_oracle(model, params=params).equilibrium(np.ones((1, 1)))
    assert found.converged.all()
    np.testing.assert_allclose(found.state, [[-2.9 / 4]], rtol=1e-13)  # z = -3 (z + 1) + 0.1


def test_finite_horizon_of_the_affine_cell_has_its_closed_form():
    # u' = w (u + x) + b - u with u(0) = w x + b: u(T) = z* + (u(0) - z*) exp((w - 1) T)
    model = ModelSpec(1, 1, None, (), horizon=1.5)
    weight, bias, x = -0.7, 0.2, np.array([[1.0], [-2.0]])
    params = {"cell.0.weight": np.array([[weight]]), "cell.0.bias": np.array([bias])}
    found = open_oracle(model, params=params).equilibrium(x)
    start = weight * x + bias
    end = start / (1 - weight)
    assert_near(found.state, end + (start - end) * np.exp((weight - 1) * 1.5), 1e-11)


# --- the contractive scaling ---


@pytest.mark.parametrize("shape", [(1, 1), (4, 7), (7, 4), (30, 30)])
def test_spectral_bound_is_that_of_the_gram_iteration(shape):
    weight = np.random.default_rng(0).normal(size=shape)
    bound = om.spectral_bound(weight)
    np.testing.assert_allclose(bound, gram_bound(weight), rtol=1e-12)
    norm_2 = np.linalg.norm(weight, 2)
    assert norm_2 <= bound * (1 + 1e-14)
    assert bound <= 1.02 * norm_2


def test_contractive_cell_has_the_lipschitz_constant_asked_for():
    model = dataclasses.replace(MODEL, stability="contractive", contraction=0.8)
    layers = om.cell_layers(model, random_params(model, scale=5.0))
    product = np.prod([np.linalg.norm(weight, 2) for weight, _ in layers])
    assert 0.75 < product <= 0.8


def test_monotone_cell_is_strongly_monotone_with_constant_one():
    model = dataclasses.replace(MODEL, stability="monotone", hidden_layer_sizes=())
    ((w, _),) = om.cell_layers(model, random_params(model, scale=5.0))
    symmetric = np.eye(6) - (w + w.T) / 2
    assert np.linalg.eigvalsh(symmetric).min() >= 1 - 1e-12
    assert np.abs(w - w.T).max() > 0.1


def test_contractive_scaling_leaves_a_small_cell_and_a_zero_weight_alone():
    model = dataclasses.replace(MODEL, stability="contractive")
    params = random_params(model, scale=0.05)
    params["cell.1.weight"][:] = 0
    for i, (weight, _) in enumerate(om.cell_layers(model, params)):
        np.testing.assert_array_equal(weight, params[f"cell.{i}.weight"])


# --- gradients ---

GRADIENTS = {
    "1 state": (MODEL, {"n_state": 1}, {}, 0.6),
    "50 states": (MODEL, {"n_state": 50}, {}, 0.6),
    "51 states": (MODEL, {"n_state": 51}, {}, 0.6),
    "no encoder": (MODEL, {"n_state": None, "n_outputs": 3}, {}, 0.6),
    "affine cell": (MODEL, {"hidden_layer_sizes": ()}, {}, 0.6),
    "deep cell": (MODEL, {"hidden_layer_sizes": (5, 4)}, {}, 0.6),
    "identity": (MODEL, {"activation": "identity"}, {}, 0.6),
    "logistic": (MODEL, {"activation": "logistic"}, {"loss": "log_loss"}, 0.6),
    "relu": (MODEL, {"activation": "relu"}, {"loss": "log_loss"}, 0.6),
    "contractive": (MODEL, {"stability": "contractive"}, {}, 3.0),
    "contractive, deep": (
        MODEL,
        {"stability": "contractive", "hidden_layer_sizes": (5, 9)},
        {"loss": "log_loss"},
        3.0,
    ),
    "monotone": (MODEL, {"stability": "monotone", "hidden_layer_sizes": ()}, {}, 0.6),
    "finite horizon": (MODEL, {"horizon": 1.5}, {}, 0.6),
    "monotone, finite horizon": (
        MODEL,
        {"stability": "monotone", "hidden_layer_sizes": (), "horizon": 1.5},
        {},
        0.6,
    ),
}


@pytest.mark.parametrize("case", GRADIENTS)
def test_gradient_is_the_difference_quotient_of_the_loss(case):
    model, model_changes, optimizer_changes, scale = GRADIENTS[case]
    model = dataclasses.replace(model, **model_changes)
    optimizer = dataclasses.replace(OPTIMIZER, **optimizer_changes)
    params = random_params(model, scale=scale)
    batch = random_batch(model, optimizer)

    def loss(moved):
        return open_oracle(model, optimizer, moved).loss_and_grad(*batch)[0]

    _, grad = open_oracle(model, optimizer, params).loss_and_grad(*batch)
    directions = [random_direction(params, seed) for seed in range(2)]
    directions += [entry_direction(params, n, (0,) * v.ndim) for n, v in params.items()]
    for direction in directions:
        quotient = difference_quotient(loss, params, direction, step=1e-4)
        assert abs(inner(grad, direction) - quotient) <= 1e-8 * norm(grad)


def test_jfb_gradient_is_that_of_one_application_of_the_cell():
    params = random_params(MODEL)
    x, target, weight = random_batch(MODEL, OPTIMIZER)
    session = open_oracle(params=params, solver=tight(adjoint="jfb"))
    state = session.equilibrium(x).state
    _, grad = session.loss_and_grad(x, target, weight)

    def loss(moved):  # z* held constant; y = D f(z*, E x)
        y = open_oracle(params=moved).cell(state, x) @ moved["decoder.weight"]
        y = y + moved["decoder.bias"]
        penalty = sum((v**2).sum() for n, v in moved.items() if n.endswith("weight"))
        data = weight @ ((y - target) ** 2).mean(axis=1) / weight.sum()
        return data + OPTIMIZER.alpha / 2 * penalty / weight.sum()

    for seed in range(3):
        direction = random_direction(params, seed)
        quotient = difference_quotient(loss, params, direction)
        assert abs(inner(grad, direction) - quotient) <= 1e-8 * norm(grad)


def test_jacobian_penalty_of_the_affine_cell_has_its_closed_form():
    # df/dz = W^T here, so that v^T df/dz = W v, the same for every sample and z.
    model = dataclasses.replace(MODEL, hidden_layer_sizes=(), stability="jacobian")
    params = random_params(model)
    batch = random_batch(model, OPTIMIZER)
    with_penalty = dataclasses.replace(OPTIMIZER, jacobian_penalty=0.7, seed=3)
    loss, grad = open_oracle(model, with_penalty, params).loss_and_grad(*batch)
    plain_loss, plain_grad = open_oracle(model, OPTIMIZER, params).loss_and_grad(*batch)
    probe = np.random.default_rng([3, 0]).choice([-1.0, 1.0], size=6)
    weight = params["cell.0.weight"]
    assert loss - plain_loss == pytest.approx(0.7 / 6 * ((weight @ probe) ** 2).sum(), rel=1e-12)
    expected = dict(plain_grad)
    expected["cell.0.weight"] = expected["cell.0.weight"] + 0.7 / 6 * 2 * np.outer(
        weight @ probe, probe
    )
    assert_params_near(grad, expected, 1e-8)


# --- training ---


def test_adam_is_optaxs():
    model = dataclasses.replace(MODEL, n_state=2, hidden_layer_sizes=(3,))
    optimizer = dataclasses.replace(OPTIMIZER, learning_rate=0.05)
    params = random_params(model)
    batch = random_batch(model, optimizer)
    session = open_oracle(model, optimizer, params)
    session.load_data(*batch)
    adam = optax.adam(0.05)
    with jax.enable_x64(True):
        theirs, state = params, adam.init(params)
        for _ in range(4):
            _, grad = open_oracle(model, optimizer, as_numpy(theirs)).loss_and_grad(*batch)
            updates, state = adam.update(grad, state)
            theirs = optax.apply_updates(theirs, updates)
            session.train_epoch(np.arange(8), 8)
    assert_params_near(session.params(), as_numpy(theirs), 1e-12)
    found = session.optimizer_state()
    assert found["count"] == int(state[0].count)
    for letter, moment in (("m", state[0].mu), ("v", state[0].nu)):
        named = {name: found[f"{letter}.{name}"] for name in params}
        assert_params_near(named, as_numpy(moment), 1e-12)


def as_numpy(params):
    return {name: np.asarray(value, np.float64) for name, value in params.items()}


def test_an_epoch_that_fails_in_the_middle_leaves_everything_as_it_was():
    session = open_oracle()
    session.load_data(*random_batch(MODEL, OPTIMIZER))
    session.train_epoch(np.arange(8), 4)
    params, state = session.params(), session.optimizer_state()
    with pytest.raises(IndexError):
        session.train_epoch(np.array([0, 1, 2, 3, 99]), 2)
    assert_params_near(session.params(), params, 0.0)
    assert_params_near(session.optimizer_state(), state, 0.0)
