"""What a user is told about samples that did not converge."""

import dataclasses
import warnings

import numpy as np
import pytest

from pydeq import ConvergenceWarning
from pydeq.estimators.advice import Tally, warn_about_fit, warn_about_solve
from pydeq.model import Equilibrium, ModelSpec, SolverSpec
from pydeq.training import EpochRecord, History, TrainResult
from pydeq.training.state import Moment

MODEL = ModelSpec(3, 1, 4, (5,))
SOLVER = SolverSpec(abstol=1e-6, reltol=1e-3, max_steps=50)


def solve_message(converged, residual=0.25, model=MODEL, solver=SOLVER, state=0.0, dtype="f8"):
    n = len(converged)
    found = Equilibrium(
        state=np.full((n, 4), state, dtype),
        output=np.zeros((n, 1), dtype),
        residual=np.where(converged, 1e-5, residual),
        n_evals=np.ones(n, int),
        converged=np.array(converged),
    )
    with pytest.warns(ConvergenceWarning) as caught:
        warn_about_solve(Tally().including(found), model, solver, found.state.dtype)
    (warning,) = caught
    return str(warning.message)


def fit_messages(failed, stop_reason="max_iter", kept_epoch=None, residual=0.25, **specs):
    records = [EpochRecord(1.0, 0.5, 8.0, residual if n else 1e-5, n, 0.1) for n in failed]
    params = {"cell.0.weight": np.zeros((4, 5))}
    kept = Moment(params, {})
    kept_epoch = len(failed) if kept_epoch is None else kept_epoch
    result = TrainResult(History(records, stop_reason), kept, kept_epoch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        specs = {"model": MODEL, "solver": SOLVER, **specs}
        warn_about_fit(result, "fit", 9, 100, **specs)
    return [(w.category, str(w.message)) for w in caught]


def test_a_solve_that_converged_is_silent():
    found = Equilibrium(*(np.zeros((2, 1)),) * 2, *(np.zeros(2),) * 2, np.ones(2, bool))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_about_solve(Tally().including(found), MODEL, SOLVER, found.state.dtype)


def test_the_count_the_worst_and_what_was_asked_for():
    message = solve_message([True, False, False, True])
    assert message.startswith(
        "2 of 4 samples did not reach an equilibrium within max_steps=50 (worst residual 2.5e-01, "
        "asked for reltol=0.001 or abstol=1e-06)."
    )
    assert "equilibrium(X).converged marks them" in message


def test_states_that_are_not_finite_are_counted_and_have_no_say_in_the_worst_residual():
    message = solve_message([False, False], residual=[np.nan, 0.5], state=[[np.nan], [0.0]])
    assert "worst residual 5.0e-01" in message
    assert "1 of them with a state that is not finite" in message
    assert "worst residual inf" in solve_message([False], residual=np.nan, state=np.inf)


@pytest.mark.parametrize("stability", ["none", "jacobian"])
def test_an_unbounded_cell_should_be_fitted_contractive(stability):
    model = dataclasses.replace(MODEL, stability=stability)
    message = solve_message([False], model=model)
    assert "stability='contractive'" in message
    assert f"this model has stability='{stability}'" in message


def test_a_contractive_cell_is_not_told_to_be_one():
    model = dataclasses.replace(MODEL, stability="contractive")
    message = solve_message([False], model=model)
    assert "contractive" not in message
    assert "a larger max_steps" in message


def test_another_solver_is_another_one():
    assert "such as 'anderson'" in solve_message([False])
    anderson = dataclasses.replace(SOLVER, name="anderson")
    assert "such as 'newton'" in solve_message([False], solver=anderson)


def test_a_tolerance_below_what_the_dtype_resolves_is_named():
    tight = dataclasses.replace(SOLVER, reltol=1e-9)
    assert "reltol=1e-09 is more than float32" in solve_message([False], solver=tight, dtype="f4")
    assert "more than" not in solve_message([False], solver=tight, dtype="f8")


def test_a_loose_tolerance_is_to_be_tightened_and_a_tight_one_loosened():
    loose = dataclasses.replace(SOLVER, reltol=0.1)
    assert "tighter abstol and reltol, such as 1e-3" in solve_message([False], solver=loose)
    assert "a looser reltol" in solve_message([False])


def test_an_integration_that_did_not_end_is_no_matter_of_equilibria():
    model = dataclasses.replace(MODEL, horizon=5.0)
    message = solve_message([False, True], model=model)
    assert message.startswith("1 of 2 samples did not reach horizon=5 within max_steps=50.")
    assert "looser abstol and reltol" in message
    assert "residual" not in message


# --- fits ---


@pytest.mark.parametrize("reason", ["max_iter", "tol"])
def test_a_fit_without_failures_is_silent(reason):
    assert fit_messages([0, 0, 0], reason) == []


def test_failed_samples_are_told_once_with_both_counts():
    ((category, message),) = fit_messages([5, 0, 7])
    assert category is ConvergenceWarning
    assert message.startswith(
        "While training, 7 of 100 samples in the last of 3 epochs (12 of 300 solves in all) did "
        "not reach an equilibrium within max_steps=50 (worst residual 2.5e-01"
    )
    assert "They were left out of the gradient." in message
    assert "stability='contractive'" in message


def test_failures_before_the_last_epoch_are_told_too():
    ((_, message),) = fit_messages([5, 0])
    assert message.startswith("While training, 0 of 100 samples in the last of 2 epochs (5 of 200")


def test_unrolled_gradients_leave_none_out():
    unrolled = dataclasses.replace(SOLVER, adjoint="unrolled")
    ((_, message),) = fit_messages([5], solver=unrolled)
    assert "left out" not in message


def test_no_sample_left_is_why_training_ended():
    ((category, message),) = fit_messages([100], "no_equilibrium", residual=np.nan)
    assert category is ConvergenceWarning
    assert "training ended there" in message
    assert "worst residual nan" in message


def test_an_interrupted_fit_says_what_the_estimator_holds():
    ((category, message),) = fit_messages([0, 0, 0], "interrupted")
    assert category is UserWarning
    assert message == (
        "fit was interrupted after 3 of 9 epochs; the estimator holds the weights of epoch 3."
    )
    ((_, message),) = fit_messages([0, 0, 0], "interrupted", kept_epoch=2)
    assert message.endswith("after 3 of 9 epochs; the estimator holds the weights of epoch 2.")
    ((_, message),) = fit_messages([], "interrupted")
    assert message.endswith("after 0 of 9 epochs; the estimator holds the weights it started from.")


def test_a_diverged_fit_says_when_and_what_helps():
    ((category, message),) = fit_messages([0, 0], "diverged", kept_epoch=1)
    assert category is ConvergenceWarning
    assert message.startswith(
        "Training diverged in epoch 2 (loss 1, gradient norm 0.5): the estimator holds the weights "
        "of epoch 1. A smaller learning_rate_init"
    )
