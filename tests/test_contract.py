"""Every engine is held to the contract of ``pydeq.engines.base``, by value against the oracle.

A new engine is one more line in ENGINES. The cases are chosen to cover every setting and the pairs
that can disturb each other, not their full product: an engine may compile for each of them.
"""

import dataclasses
import signal
import time

import numpy as np
import pytest
from helpers import (
    DIFFERENCE_TOLERANCE,
    GRADIENT_TOLERANCE,
    STATE_TOLERANCE,
    TRAINED_TOLERANCE,
    assert_near,
    assert_params_equal,
    assert_params_near,
    difference_quotient,
    inner,
    norm,
    random_batch,
    random_direction,
    random_params,
    tight,
)
from oracle import OracleEngine

from pydeq.engines import epoch_report, get_engine
from pydeq.engines.base import check_supported
from pydeq.model import SOLVERS, ModelSpec, OptimizerSpec, SolverSpec, metrics

ENGINES = [
    pytest.param("jax"),
    pytest.param("julia", marks=pytest.mark.julia),
]

MODEL = ModelSpec(n_features=3, n_outputs=2, n_state=6, hidden_layer_sizes=(7,))
OPTIMIZER = OptimizerSpec(alpha=0.1)
ORACLE = OracleEngine()

# f(s) = a relu(s) - b relu(-s): the slope is a for s > 0 and b for s < 0. With a > 1 > b, inputs
# above 0 have no equilibrium, while z* = b x / (1 - b) for those below.
TWO_SLOPES = ModelSpec(1, 1, None, (2,), activation="relu")


def two_slopes(above, below, dtype="float64"):
    params = {
        "cell.0.weight": [[1.0, -1.0]],
        "cell.0.bias": [0.0, 0.0],
        "cell.1.weight": [[above], [-below]],
        "cell.1.bias": [0.0],
    }
    return {name: np.array(value, dtype) for name, value in params.items()}


def small(**changes):
    return dataclasses.replace(MODEL, **changes)


MONOTONE = small(stability="monotone", hidden_layer_sizes=())
WITHOUT_SPLITTING = [name for name in SOLVERS if name != "peaceman_rachford"]


def model_for(solver):
    """Return a small model that the solver can solve."""
    return MONOTONE if solver == "peaceman_rachford" else MODEL


def open_session(engine, model, solver, optimizer, params, optimizer_state=None):
    """Open a session, or skip where the engine says that it has not what that takes."""
    try:
        check_supported(type(engine), model, solver)
    except ValueError as reason:
        pytest.skip(str(reason))
    return engine.open(model, solver, optimizer, params, optimizer_state)


def one_easy_sample(model=MODEL):
    """Weights without biases and a batch whose sample 3, x = 0, starts at its equilibrium, 0."""
    params = random_params(model, scale=1.0)
    params = {n: np.zeros_like(v) if n.endswith(".bias") else v for n, v in params.items()}
    x, target, weight = random_batch(model, OPTIMIZER)
    x[3] = 0
    return params, (x, target, weight)


def meets_stopping_rule(z, fz, solver):
    """The rule of SolverSpec; what is not finite does not meet it."""
    with np.errstate(all="ignore"):
        gap, size = np.abs(fz - z).max(axis=1), np.abs(fz).max(axis=1)
        return np.isfinite(gap) & ((gap <= solver.abstol) | (gap <= solver.reltol * size))


@pytest.fixture(scope="module", params=ENGINES)
def engine(request):
    return get_engine(request.param, device="cpu")


def test_what_an_engine_does_not_have_is_refused(engine):
    params = random_params(MONOTONE)
    for name in set(SOLVERS) - set(engine.solvers):
        with pytest.raises(ValueError, match=f"does not have solver='{name}'; it has 'tsit5'"):
            engine.open(MODEL, SolverSpec(name), OPTIMIZER, random_params(MODEL))
    if "monotone" not in engine.stabilities:
        with pytest.raises(ValueError, match="does not have stability='monotone'; it has 'none'"):
            engine.open(MONOTONE, SolverSpec(), OPTIMIZER, params)
    for name in set(engine.solvers) - set(engine.unrolls):
        unrolled = SolverSpec(name, adjoint="unrolled")
        with pytest.raises(ValueError, match=f"not have adjoint='unrolled' for solver='{name}'"):
            engine.open(MODEL, unrolled, OPTIMIZER, random_params(MODEL))


# --- equilibria ---


@pytest.mark.parametrize(
    ("solver", "activation", "n_state"),
    [
        ("tsit5", "tanh", 1),
        ("tsit5", "tanh", 50),
        ("tsit5", "tanh", 51),
        ("tsit5", "tanh", 128),
        ("anderson", "relu", 1),
        ("anderson", "relu", 51),
        ("newton", "logistic", 1),
        ("newton", "logistic", 128),
        ("fixed_point", "identity", 51),
        ("broyden", "relu", 1),
        ("broyden", "tanh", 51),
        ("peaceman_rachford", "identity", 1),
        ("peaceman_rachford", "relu", 51),
        ("peaceman_rachford", "tanh", 6),
        ("peaceman_rachford", "logistic", 6),
    ],
)
def test_states_are_the_oracles(engine, solver, activation, n_state):
    model = dataclasses.replace(model_for(solver), n_state=n_state, activation=activation)
    args = (model, tight(name=solver), OPTIMIZER, random_params(model))
    x, _, _ = random_batch(model, OPTIMIZER)
    found, expected = open_session(engine, *args).equilibrium(x), ORACLE.open(*args).equilibrium(x)
    assert found.converged.all()
    assert_near(found.state, expected.state, STATE_TOLERANCE["float64"], "state")
    assert_near(found.output, expected.output, STATE_TOLERANCE["float64"], "output")
    assert (found.residual <= 1e-10).all()
    assert (found.n_evals > 0).all()


NO_ENCODER = small(n_state=None, n_outputs=3, hidden_layer_sizes=(5, 4))
CONTRACTIVE = small(stability="contractive", hidden_layer_sizes=(5, 9), activation="relu")
FINITE_HORIZON = small(hidden_layer_sizes=(), horizon=1.5)


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        pytest.param(NO_ENCODER, "float32", id="no encoder, float32"),
        pytest.param(CONTRACTIVE, "float64", id="contractive"),
        pytest.param(MONOTONE, "float64", id="monotone, by the ODE"),
        pytest.param(FINITE_HORIZON, "float64", id="finite horizon"),
        pytest.param(FINITE_HORIZON, "float32", id="finite horizon, float32"),
    ],
)
def test_states_of_other_models_are_the_oracles(engine, model, dtype):
    scale = 3.0 if model.stability == "contractive" else 0.6
    args = (model, tight(dtype), OPTIMIZER, random_params(model, dtype=dtype, scale=scale))
    x, _, _ = random_batch(model, OPTIMIZER, dtype=dtype)
    found, expected = open_session(engine, *args).equilibrium(x), ORACLE.open(*args).equilibrium(x)
    assert found.converged.all()
    assert_near(found.state, expected.state, STATE_TOLERANCE[dtype], "state")
    assert_near(found.output, expected.output, STATE_TOLERANCE[dtype], "output")
    assert found.state.dtype == found.output.dtype == found.residual.dtype == np.dtype(dtype)


def test_more_samples_than_fit_a_chunk_keep_their_order(engine):
    args = (MODEL, tight(name="fixed_point"), OPTIMIZER, random_params(MODEL))
    x, _, _ = random_batch(MODEL, OPTIMIZER, n=2100)
    found = engine.open(*args).equilibrium(x)
    assert_near(found.state, ORACLE.open(*args).equilibrium(x).state, STATE_TOLERANCE["float64"])
    assert found.residual.shape == found.n_evals.shape == found.converged.shape == (2100,)


@pytest.mark.parametrize("solver", SOLVERS)
def test_residual_is_that_of_the_returned_state(engine, solver):
    # Solved loosely: at a tight tolerance a residual would be rounding.
    loose = SolverSpec(solver, abstol=1e-2, reltol=1e-2)
    model = model_for(solver)
    params = random_params(model, scale=1.0)
    x, _, _ = random_batch(model, OPTIMIZER)
    found = open_session(engine, model, loose, OPTIMIZER, params).equilibrium(x)
    fz = ORACLE.open(model, loose, OPTIMIZER, params).cell(found.state, x)
    expected = metrics.residual(found.state, fz)
    assert expected.max() > 1e-5  # else the comparison says nothing
    np.testing.assert_allclose(found.residual, expected, rtol=1e-8, atol=1e-15)
    np.testing.assert_array_equal(found.converged, meets_stopping_rule(found.state, fz, loose))
    decoded = found.state @ params["decoder.weight"] + params["decoder.bias"]
    assert_near(found.output, decoded, 1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_too_few_steps_are_reported_sample_by_sample(engine, solver):
    few = SolverSpec(solver, abstol=1e-9, reltol=1e-9, max_steps=2)
    model = model_for(solver)
    params, (x, _, _) = one_easy_sample(model)
    found = open_session(engine, model, few, OPTIMIZER, params).equilibrium(x)
    np.testing.assert_array_equal(found.converged, np.arange(8) == 3)
    fz = ORACLE.open(model, few, OPTIMIZER, params).cell(found.state, x)
    np.testing.assert_allclose(
        found.residual, metrics.residual(found.state, fz), rtol=1e-6, atol=1e-15
    )


@pytest.mark.parametrize("solver", ["tsit5", "fixed_point"])
def test_either_tolerance_ends_the_search(engine, solver):
    # States of sizes 1e-6, 1 and 1e6: the absolute tolerance is the looser for the first only.
    model = ModelSpec(1, 1, None, ())
    params = {"cell.0.weight": np.array([[0.5]]), "cell.0.bias": np.zeros(1)}
    x = np.array([[1e-6], [1.0], [1e6]])
    for abstol, reltol in [(1e-4, 0.0), (0.0, 1e-4), (1e-4, 1e-4)]:
        spec = tight(name=solver, abstol=abstol, reltol=reltol)
        z = engine.open(model, spec, OPTIMIZER, params).equilibrium(x).state
        gap, size = np.abs(0.5 * (z + x) - z)[:, 0], np.abs(0.5 * (z + x))[:, 0]
        allowed = np.maximum(abstol, reltol * size)
        assert (gap <= allowed * (1 + 1e-9)).all()
        # and the search did not go on: a further hundred-fold was not gained
        goes_on = gap < allowed / 100
        np.testing.assert_array_equal(goes_on, [abstol > 0, False, False])


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sample_does_not_depend_on_its_batch(engine, solver):
    # Loosely solved, so that another number of steps would show.
    model = model_for(solver)
    loose = SolverSpec(solver, abstol=1e-2, reltol=1e-2)
    session = open_session(engine, model, loose, OPTIMIZER, random_params(model))
    x, _, _ = random_batch(MODEL, OPTIMIZER, n=8)
    x *= np.geomspace(0.01, 10, 8)[:, None]
    whole = session.equilibrium(x)
    assert len(set(whole.n_evals)) > 1  # samples that differ in difficulty
    for rows in ([0], [7, 2, 5], list(reversed(range(8)))):
        part = session.equilibrium(x[rows])
        np.testing.assert_array_equal(part.n_evals, whole.n_evals[rows])
        for name in ("state", "output"):
            found, expected = getattr(part, name), getattr(whole, name)[rows]
            np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13, err_msg=name)
    strided = np.repeat(np.asfortranarray(x), 2, axis=0)[::2]
    np.testing.assert_array_equal(session.equilibrium(strided).state, whole.state)


@pytest.mark.parametrize("max_steps", [50, 3000])
@pytest.mark.parametrize("solver", WITHOUT_SPLITTING)
def test_a_cell_without_stable_equilibrium_is_reported(engine, solver, max_steps):
    # Newton and Anderson may find the equilibrium that the ODE runs away from; what follows the
    # ODE, or iterates, cannot (1.5 ** 3000 overflows), and no solver may claim what is not so.
    model = ModelSpec(2, 2, None, (), activation="identity")
    params = {"cell.0.weight": 1.5 * np.eye(2), "cell.0.bias": np.array([0.1, -0.2])}
    spec = SolverSpec(solver, max_steps=max_steps)
    x = np.array([[1.0, 2.0], [-3.0, 0.5], [0.0, 1.0]])
    found = open_session(engine, model, spec, OPTIMIZER, params).equilibrium(x)
    with np.errstate(all="ignore"):
        fz = 1.5 * (found.state + x) + params["cell.0.bias"]
    np.testing.assert_array_equal(found.converged, meets_stopping_rule(found.state, fz, spec))
    if solver in ("tsit5", "fixed_point"):
        assert not found.converged.any()
    assert (~(found.residual <= 1e-3) | found.converged).all()
    assert (found.n_evals <= 40 * max_steps).all()  # the steps were bounded


@pytest.mark.parametrize("solver", WITHOUT_SPLITTING)
def test_a_sample_that_overflows_does_not_disturb_the_others(engine, solver):
    x = np.array([[1.0], [-1.0], [2.0], [-3.0]])
    spec = tight(name=solver, max_steps=2000)
    args = (TWO_SLOPES, spec, OPTIMIZER, two_slopes(4.0, 0.5))
    found = open_session(engine, *args).equilibrium(x)
    below = x[:, 0] < 0
    assert found.converged[below].all()
    assert_near(found.state[below], x[below], STATE_TOLERANCE["float64"])  # 0.5 x / (1 - 0.5)
    if solver in ("tsit5", "fixed_point"):
        assert not found.converged[~below].any()
        assert not (found.residual[~below] <= 1e-3).any()


@pytest.mark.parametrize(
    "model",
    [MODEL, small(n_state=None, n_outputs=3, stability="contractive"), MONOTONE],
    ids=["encoder", "contractive, no encoder", "monotone"],
)
def test_trajectory_iterates_the_cell(engine, model):
    args = (model, tight(), OPTIMIZER, random_params(model, scale=2.0))
    x, _, _ = random_batch(model, OPTIMIZER, n=5)
    session, oracle = open_session(engine, *args), ORACLE.open(*args)
    found = session.trajectory(x, 4)
    assert found.shape == (5, 5, model.state_width)
    u = np.zeros((5, model.state_width))
    for iterate in found:
        u = oracle.cell(u, x)
        assert_near(iterate, u, 1e-12)
    np.testing.assert_array_equal(session.trajectory(x, 0), found[:1])


# --- loss and gradient ---

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


# --- training ---

TRAINING = {
    "adam": ({}, {}, {"learning_rate": 0.02}, 0.6, "float64"),
    "contractive": (
        {"stability": "contractive"},
        {"name": "anderson"},
        {"loss": "log_loss", "learning_rate": 0.02},
        3.0,
        "float64",
    ),
    "no encoder": (
        {"n_state": None, "n_outputs": 3},
        {"name": "fixed_point"},
        {"learning_rate": 0.02},
        0.6,
        "float64",
    ),
    "jacobian, frozen encoder": (
        {"stability": "jacobian"},
        {"name": "newton"},
        {"learning_rate": 0.02, "jacobian_penalty": 0.7, "seed": 5, "train_encoder": False},
        0.6,
        "float64",
    ),
    "monotone": (
        {"stability": "monotone", "hidden_layer_sizes": ()},
        {"name": "peaceman_rachford"},
        {"learning_rate": 0.02},
        0.6,
        "float64",
    ),
    "float32": ({}, {}, {"learning_rate": 0.02}, 0.6, "float32"),
}


def training_case(name, n=20):
    model_changes, solver_changes, optimizer_changes, scale, dtype = TRAINING[name]
    model = small(**model_changes)
    optimizer = dataclasses.replace(OPTIMIZER, **optimizer_changes)
    params = random_params(model, dtype=dtype, scale=scale)
    data = random_batch(model, optimizer, n=n, dtype=dtype)
    return (model, tight(dtype, **solver_changes), optimizer, params), data, dtype


def orders(n, n_epochs=3):
    rng = np.random.default_rng(7)
    return [rng.permutation(n) for _ in range(n_epochs)]


def train(engine, args, data, epochs, batch_size=8, optimizer_state=None):
    """Open a session, train it, return it and its reports."""
    session = open_session(engine, *args, optimizer_state)
    session.load_data(*data)
    return session, [session.train_epoch(order, batch_size) for order in epochs]


@pytest.mark.parametrize("case", TRAINING)
def test_training_is_the_oracles(engine, case):
    args, data, dtype = training_case(case)
    session, reports = train(engine, args, data, orders(20))  # batches of 8, 8 and 4
    oracle, expected_reports = train(ORACLE, args, data, orders(20))
    tolerance = TRAINED_TOLERANCE[dtype]
    assert_params_near(session.params(), oracle.params(), tolerance)
    assert_state_near(session.optimizer_state(), oracle.optimizer_state(), tolerance)
    for found, expected in zip(reports, expected_reports, strict=True):
        assert found.loss == pytest.approx(expected.loss, rel=tolerance)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=tolerance)
        assert found.n_failed == expected.n_failed == 0
        assert found.n_evals > 1
    start = args[-1]
    for name, value in session.params().items():
        is_frozen = name.startswith("encoder.") and not args[2].train_encoder
        assert np.array_equal(value, start[name]) == is_frozen, name


def assert_state_near(found, expected, tolerance):
    """Compare optimiser states: ``count`` exactly, m and v by value."""
    assert found.keys() == expected.keys()
    assert found["count"].dtype == np.int64
    assert found["count"] == expected["count"] == 9
    for letter in "mv":
        moments = [
            {name: value for name, value in state.items() if name.startswith(f"{letter}.")}
            for state in (found, expected)
        ]
        assert_params_near(*moments, 5 * tolerance)


def test_each_batch_is_reported_in_order(engine):
    args, data, _ = training_case("adam")
    session = open_session(engine, *args)
    session.load_data(*data)
    found = []
    report = session.train_epoch(orders(20)[0], 8, found.append)
    oracle = open_session(ORACLE, *args)
    oracle.load_data(*data)
    expected = []
    oracle.train_epoch(orders(20)[0], 8, expected.append)
    assert [batch.n_samples for batch in found] == [8, 8, 4]
    for name in ("loss", "weight", "grad_norm"):
        values = [getattr(batch, name) for batch in expected]
        np.testing.assert_allclose([getattr(b, name) for b in found], values, rtol=1e-6)
    assert report == epoch_report(found)


def test_an_exception_in_the_callback_undoes_the_epoch(engine):
    args, data, _ = training_case("adam")
    session = open_session(engine, *args)
    session.load_data(*data)

    def fail(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.train_epoch(np.arange(20), 8, fail)
    assert_params_equal(session.params(), args[-1])
    assert session.optimizer_state()["count"] == 0


def test_an_order_may_leave_samples_out_and_repeat_them(engine):
    args, data, _ = training_case("contractive")
    order = np.array([3, 3, 17, 0, 5, 3, 1, 2, 19, 18, 17])
    session, _ = train(engine, args, data, [order])
    oracle, _ = train(ORACLE, args, data, [order])
    assert_params_near(session.params(), oracle.params(), TRAINED_TOLERANCE["float64"])


def test_report_is_of_the_weights_before_the_step(engine):
    # (Not by tsit5: in Julia the samples of a training batch share the ODE's steps.)
    few = SolverSpec("fixed_point", abstol=1e-9, reltol=1e-9, max_steps=2)
    params, data = one_easy_sample()
    session = engine.open(MODEL, few, OPTIMIZER, params)
    session.load_data(*data)
    found = session.equilibrium(data[0])
    report = session.train_epoch(np.arange(8), 8)
    assert report.n_failed == (~found.converged).sum() == 7
    assert report.worst_residual == pytest.approx(found.residual.max(), rel=1e-6)
    assert report.n_evals == pytest.approx(found.n_evals.mean())


@pytest.mark.parametrize("case", ["adam", "contractive"])
def test_samples_of_weight_zero_have_no_influence(engine, case):
    args, (x, target, weight), _ = training_case(case)
    weight[::2] = 0
    batch = slice(0, 8)
    loss, grad = engine.open(*args).loss_and_grad(x[batch], target[batch], weight[batch])
    x_other, target_other = x.copy(), target.copy()
    x_other[::2], target_other[::2] = 1e300, -1e300  # whatever they are
    session = engine.open(*args)
    other = session.loss_and_grad(x_other[batch], target_other[batch], weight[batch])
    assert loss == pytest.approx(other[0], rel=1e-12)
    assert_params_near(other[1], grad, 1e-12)
    oracle_loss, _ = ORACLE.open(*args).loss_and_grad(
        *(array[batch][weight[batch] > 0] for array in (x, target, weight))
    )
    assert loss == pytest.approx(oracle_loss, rel=GRADIENT_TOLERANCE["float64"])

    trained, reports = train(engine, args, (x, target, weight), orders(20))
    others, other_reports = train(engine, args, (x_other, target_other, weight), orders(20))
    assert_params_near(others.params(), trained.params(), 1e-10)
    for report, other_report in zip(reports, other_reports, strict=True):
        assert report.n_failed == other_report.n_failed == 0
        assert other_report.loss == pytest.approx(report.loss, rel=1e-10)


@pytest.mark.parametrize(
    ("adjoint", "solver", "horizon"),
    [
        ("implicit", "tsit5", None),
        ("jfb", "fixed_point", None),
        ("unrolled", "fixed_point", None),
        ("implicit", "tsit5", 8.0),
    ],
)
def test_failed_samples_are_counted_and_left_out(engine, adjoint, solver, horizon):
    # Above 0 the state grows as 4 ** k, or exp(3 t) from 1e300, until it is not finite.
    model = dataclasses.replace(TWO_SLOPES, horizon=horizon)
    max_steps = 1000 if horizon is None else 300
    spec = SolverSpec(solver, 1e-10, 1e-10, max_steps=max_steps, adjoint=adjoint)
    args = (model, spec, OptimizerSpec(learning_rate=0.01), two_slopes(4.0, 0.5))
    x = np.array([[1.0], [-1.0], [2.0], [-2.0], [-0.5], [3.0], [-3.0], [-0.2]])
    target, weight, epoch = -x, np.linspace(1, 2, 8), np.array([7, 0, 1, 2, 3, 4, 5, 6])
    below = x[:, 0] < 0
    if horizon is not None:
        x[~below] *= 1e300

    session, (report,) = train(engine, args, (x, target, weight), [epoch], batch_size=4)
    oracle, (expected,) = train(ORACLE, args, (x, target, weight * below), [epoch], batch_size=4)
    assert report.n_failed == (~below).sum()
    assert not report.worst_residual <= 1e-3
    assert report.loss == pytest.approx(expected.loss, rel=1e-6)
    assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-6)
    assert_params_near(session.params(), oracle.params(), TRAINED_TOLERANCE["float64"])


def test_a_batch_with_no_sample_left_takes_no_step(engine):
    args = (
        TWO_SLOPES,
        SolverSpec(max_steps=200),
        OptimizerSpec(learning_rate=0.01, alpha=0.1),
        two_slopes(1.5, 0.5),
    )
    data = (np.linspace(1, 3, 6)[:, None], np.ones((6, 1)), np.ones(6))
    session, (report,) = train(engine, args, data, [np.arange(6)], batch_size=4)
    assert report.n_failed == 6
    assert_params_equal(session.params(), args[-1])
    state = session.optimizer_state()
    assert state["count"] == 0
    assert not any(value.any() for value in state.values())


# --- sessions ---


@pytest.mark.parametrize("case", ["adam", "contractive", "float32"])
def test_a_session_goes_on_where_another_ended(engine, case):
    args, data, _ = training_case(case)
    epochs = orders(20)
    straight, _ = train(engine, args, data, epochs)
    first, _ = train(engine, args, data, epochs[:2])
    params, state = first.params(), first.optimizer_state()
    first.close()
    second, _ = train(engine, (*args[:3], params), data, epochs[2:], optimizer_state=state)
    assert_params_equal(second.params(), straight.params())
    assert_params_equal(second.optimizer_state(), straight.optimizer_state())


def test_an_engine_reads_the_optimizer_state_of_another(engine):
    args, data, _ = training_case("adam")
    epochs = orders(20)
    oracle, _ = train(ORACLE, args, data, epochs[:2])
    state = oracle.optimizer_state()
    session, _ = train(
        engine, (*args[:3], oracle.params()), data, epochs[2:], optimizer_state=state
    )
    oracle.train_epoch(epochs[2], 8)
    assert_params_near(session.params(), oracle.params(), TRAINED_TOLERANCE["float64"])


def test_a_failing_epoch_changes_nothing(engine):
    args, data, _ = training_case("adam")
    session, _ = train(engine, args, data, orders(20, 1))
    params, state = session.params(), session.optimizer_state()
    with pytest.raises(IndexError):
        session.train_epoch(np.append(np.arange(16), 20), 8)  # there is no sample 20
    assert_params_equal(session.params(), params)
    assert_params_equal(session.optimizer_state(), state)
    # and the session goes on as if it had not been asked
    epoch = orders(20, 2)[1]
    session.train_epoch(epoch, 8)
    undisturbed, _ = train(engine, args, data, orders(20, 2))
    assert_params_equal(session.params(), undisturbed.params())


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a POSIX timer")
def test_an_interrupted_epoch_changes_nothing(engine):
    args, data, _ = training_case("adam")
    session, _ = train(engine, args, data, orders(20, 1))
    params, state = session.params(), session.optimizer_state()

    def interrupt(signum, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        start = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            session.train_epoch(np.zeros(400_000, np.int64), 8)  # 50 000 batches: many seconds
        waited = time.perf_counter() - start
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert waited < 5  # it was heard between batches
    assert_params_equal(session.params(), params)
    assert_params_equal(session.optimizer_state(), state)


def test_params_are_copies_in_and_out(engine):
    args, data, _ = training_case("adam")
    start = args[-1]
    kept = {name: value.copy() for name, value in start.items()}
    session = engine.open(*args)
    for value in start.values():
        value[:] = 7
    assert_params_equal(session.params(), kept)
    for value in session.params().values():
        value[:] = 8
    assert_params_equal(session.params(), kept)
    session.load_data(*data)
    session.train_epoch(np.arange(20), 8)
    state = session.optimizer_state()
    for name, value in session.optimizer_state().items():
        value[...] = 9
        assert state[name] is not value
    assert_params_equal(session.optimizer_state(), state)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_result_has_the_dtype_of_the_weights(engine, dtype):
    dtype = np.dtype(dtype)
    batch = random_batch(MODEL, OPTIMIZER, dtype=dtype)
    session = engine.open(MODEL, SolverSpec(), OPTIMIZER, random_params(MODEL, dtype=dtype))
    found = session.equilibrium(batch[0])
    assert found.state.dtype == found.output.dtype == found.residual.dtype == dtype
    assert found.n_evals.dtype == np.int64
    assert found.converged.dtype == np.bool_
    assert session.trajectory(batch[0], 2).dtype == dtype
    session.load_data(*batch)
    report = session.train_epoch(np.arange(8), 8)
    for field in dataclasses.fields(report):
        kind = int if field.name == "n_failed" else float
        assert type(getattr(report, field.name)) is kind, field.name
    named = {**session.params(), **session.loss_and_grad(*batch)[1]}
    state = session.optimizer_state()
    assert state.pop("count").dtype == np.int64
    assert {type(value) for value in [*named.values(), *state.values()]} == {np.ndarray}
    assert {value.dtype for value in [*named.values(), *state.values()]} == {dtype}
