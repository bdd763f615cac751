"""What the engines share: the choice by what is asked for, an epoch's report of its batches'."""

import logging

import numpy as np
import pytest

from pydeq import DEQRegressor, EngineUnavailableError, engines
from pydeq.engines import BatchReport, epoch_report, get_engine
from pydeq.engines.julia import JuliaEngine
from pydeq.model import ModelSpec, SolverSpec

MODEL = ModelSpec(n_features=2, n_outputs=1, n_state=3, hidden_layer_sizes=(4,))
MONOTONE = ModelSpec(2, 1, 3, (), stability="monotone")


def batch(**changes):
    values = BatchReport(2.0, 1.0, 3.0, n_evals=40, n_samples=4, worst_residual=0.5, n_failed=0)
    return values._replace(**changes)


def test_an_epoch_is_the_mean_of_its_batches():
    nothing = batch(loss=np.nan, weight=0.0, n_failed=4, worst_residual=np.nan, grad_norm=0.0)
    found = epoch_report([batch(), batch(loss=5.0, weight=3.0, n_evals=80), nothing])
    assert found.loss == (2 * 1 + 5 * 3) / 4
    assert found.grad_norm == 3.0
    assert found.n_evals == pytest.approx(160 / 12)
    assert found.worst_residual == np.inf
    assert found.n_failed == 4
    assert np.isnan(epoch_report([nothing]).loss)


@pytest.fixture
def julia_has_little(monkeypatch):
    """A machine where ``auto`` takes Julia, which has Tsit5 alone and no monotone cell."""
    monkeypatch.setattr(engines, "auto_choice", lambda: "julia")
    monkeypatch.setattr(JuliaEngine, "solvers", ("tsit5", "newton"))
    monkeypatch.setattr(JuliaEngine, "stabilities", ("none", "contractive"))
    monkeypatch.setattr(JuliaEngine, "unrolls", ("tsit5",))


@pytest.mark.parametrize(
    ("model", "solver", "missing"),
    [
        (MODEL, SolverSpec("broyden"), "does not have solver='broyden'"),
        (MONOTONE, SolverSpec("tsit5"), "does not have stability='monotone'"),
        (MODEL, SolverSpec("newton", adjoint="unrolled"), "adjoint='unrolled' for solver='newton'"),
    ],
)
def test_auto_takes_jax_for_what_the_other_has_not(
    julia_has_little, caplog, model, solver, missing
):
    with caplog.at_level(logging.INFO, "pydeq"):
        assert get_engine("auto", "cpu", model, solver).name == "jax"
    assert missing in caplog.text
    with pytest.raises(ValueError, match=missing):
        engines.base.check_supported(JuliaEngine, model, solver)


@pytest.mark.parametrize("engine", ["jax", "auto"])
def test_methods_of_julia_are_refused_where_it_is_not_set_up(engine, monkeypatch):
    monkeypatch.setattr(engines, "auto_choice", lambda: "jax")
    model = DEQRegressor(solver="rock4", engine=engine)
    with pytest.raises(ValueError, match=r"jax engine does not have solver='rock4'.*julia install"):
        model.fit([[1.0], [2.0]], [1.0, 2.0])


def test_auto_keeps_to_its_choice_for_what_it_has(julia_has_little, monkeypatch):
    opened = []
    monkeypatch.setattr(engines, "open_engine", lambda name, device: opened.append(name))
    get_engine("auto", "cpu", MODEL, SolverSpec("newton"))
    get_engine("auto", "cpu")
    assert opened == ["julia", "julia"]


def test_several_processes_train_on_jax_alone(julia_has_little, caplog):
    with caplog.at_level(logging.INFO, "pydeq"):
        assert get_engine("auto", "cpu", MODEL, SolverSpec("newton"), 2).name == "jax"
    assert "Julia trains in one process; this fit has 2" in caplog.text
    with pytest.raises(EngineUnavailableError, match="engine='julia' trains in one process"):
        get_engine("julia", "cpu", MODEL, SolverSpec("newton"), 2)


def test_an_estimator_says_what_it_needs(julia_has_little):
    X = np.linspace(-1, 1, 8)[:, None]
    model = DEQRegressor(n_state=2, hidden_layer_sizes=(), stability="monotone", random_state=0)
    model.partial_fit(X, X[:, 0])
    assert model.engine_ == "jax"
    assert model.predict(X).shape == (8,)
