"""Every engine's states, residuals, searches and trajectories (see ``contract.py``)."""

import dataclasses

import numpy as np
import pytest
from contract import (
    MODEL,
    MONOTONE,
    OPTIMIZER,
    ORACLE,
    TWO_SLOPES,
    WITHOUT_SPLITTING,
    meets_stopping_rule,
    model_for,
    one_easy_sample,
    open_session,
    small,
    two_slopes,
)
from helpers import (
    STATE_TOLERANCE,
    assert_near,
    random_batch,
    random_params,
    tight,
)

from pydeq.model import SOLVERS, ModelSpec, SolverSpec, metrics

pytestmark = pytest.mark.usefixtures("nothing_kept")


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


@pytest.mark.parametrize("model", [MODEL, CONTRACTIVE, MONOTONE], ids=lambda m: m.stability)
def test_products_with_the_cells_derivative(engine, model):
    args = (model, tight(), OPTIMIZER, random_params(model, scale=2.0))
    x, _, _ = random_batch(model, OPTIMIZER)
    state, tangent = np.random.default_rng(5).normal(size=(2, len(x), model.state_width))
    found, expected = (open_session(e, *args).jvp(x, state, tangent) for e in (engine, ORACLE))
    assert_near(found, expected, 1e-12)
    assert found.dtype == np.float64
