"""How a fit starts, what weights do to it, how it ends, and what a user is told then."""

import numpy as np
import oracle
import pytest
from estimator_cases import BOTH, SMALL, StubbornEngine, interrupted_fit, make_data
from helpers import assert_near, assert_params_equal, assert_params_near
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from pydeq import ConvergenceWarning, DEQClassifier, DEQRegressor, presets

# --- the start ---


def test_the_regressor_learns_around_the_weighted_mean(on_oracle):
    X, y = make_data(DEQRegressor)
    weight = np.linspace(0, 2, 40)
    model = DEQRegressor(**SMALL).fit(X, y + 1000, sample_weight=weight)
    mean = np.average(y + 1000, weights=weight)
    assert_near(model.target_mean_, [mean], 1e-12)
    spread = np.sqrt(np.average((y + 1000 - mean) ** 2, weights=weight))
    assert_near(model.target_scale_, [spread], 1e-9)


def test_without_a_decoder_y_is_learned_as_it_is(on_oracle):
    X = np.arange(1.0, 5.0)[:, None]
    model = DEQRegressor(**SMALL).set_params(n_state=None).fit(X, 50 * X)
    assert (model.target_mean_, model.target_scale_) == ([0.0], [1.0])
    np.testing.assert_array_equal(model.predict(X), model.equilibrium(X).state)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_fit_is_the_same_for_every_unit_of_y(dtype):
    X, y = make_data(DEQRegressor)
    X = X.astype(dtype)
    model = DEQRegressor(**SMALL).set_params(max_iter=60, learning_rate_init=0.05, engine="jax")

    def r2(y):
        return model.fit(X, y).score(X, y)

    expected = r2(y)
    assert expected > 0.9
    for scale, shift in ((1e-6, 0.0), (1e-3, 3.0), (1e4, 0.0), (1e9, 3.0)):
        assert r2(scale * (y + shift)) == pytest.approx(expected, abs=0.01)
        assert model.loss_curve_[-1] == pytest.approx(1 - expected, abs=0.05)


def test_each_output_has_its_own_unit(on_oracle):
    X, y = make_data(DEQRegressor)
    scales = np.array([1e-6, 1.0, 1e9])
    model = DEQRegressor(**SMALL)
    even = model.fit(X, np.column_stack([y, -y, y**2])).predict(X)
    uneven = model.fit(X, np.column_stack([y, -y, y**2]) * scales).predict(X)
    assert_near(uneven / scales, even, 1e-9)


@pytest.mark.parametrize("value", [0.0, 7.0, 1e-6, -1e9, 1e-300, 1e300])
def test_a_constant_output_is_learned(value, on_oracle):
    X, y = make_data(DEQRegressor)
    model = DEQRegressor(**SMALL).set_params(max_iter=100)
    found = model.fit(X, np.column_stack([np.full(40, value), y])).predict(X)
    assert np.abs(found[:, 0] - value).max() <= 0.3 * (abs(value) or 1)
    assert model.target_scale_[0] > 0


def test_targets_at_the_end_of_the_range_are_learned(on_oracle):
    X, y = make_data(DEQRegressor)
    model = DEQRegressor(**SMALL).set_params(max_iter=100)
    expected = model.fit(X, y).predict(X)
    top = 1e307 / np.abs(y).max()
    with np.errstate(all="raise"):
        found = model.fit(X, y * top).predict(X)
    assert_near(found / top, expected, 1e-6)


def test_going_on_keeps_the_first_scale(on_oracle):
    X, y = make_data(DEQRegressor)
    model = DEQRegressor(**SMALL).fit(X, y)
    scale = model.target_scale_.copy()
    model.partial_fit(X, 10 * y)
    np.testing.assert_array_equal(model.target_scale_, scale)
    model.set_params(warm_start=True).fit(X, 10 * y)
    np.testing.assert_array_equal(model.target_scale_, scale)
    model.set_params(warm_start=False).fit(X, 10 * y)
    assert_near(model.target_scale_, 10 * scale, 1e-9)


def test_targets_far_from_zero_need_no_scaling(on_oracle):
    X, y = make_data(DEQRegressor)
    model = DEQRegressor(**SMALL).set_params(max_iter=150)
    assert model.fit(X, y + 1000).score(X, y + 1000) > 0.9


@pytest.mark.parametrize("cls", BOTH)
def test_random_state_decides_everything(cls, on_oracle):
    X, y = make_data(cls)

    def params(random_state):
        return clone(cls(**SMALL)).set_params(random_state=random_state).fit(X, y).params_

    assert_params_equal(params(3), params(3))
    assert_params_equal(params(np.random.RandomState(3)), params(3))
    for other in (params(4), params(None)):
        assert not np.array_equal(other["cell.0.weight"], params(3)["cell.0.weight"])


def test_a_random_state_object_is_consumed(on_oracle):
    X, y = make_data(DEQRegressor)
    model = DEQRegressor(**SMALL).set_params(random_state=np.random.RandomState(0))
    first = model.fit(X, y).params_
    assert not np.array_equal(first["cell.0.weight"], model.fit(X, y).params_["cell.0.weight"])


@pytest.mark.parametrize("cls", BOTH)
def test_fit_starts_afresh(cls, on_oracle):
    X, y = make_data(cls)
    model = cls(**SMALL).fit(X, y)
    first = model.params_
    assert_params_equal(model.fit(X, y).params_, first)
    assert model.n_iter_ == 5


def test_float32_and_float64_start_alike():
    X, y = make_data(DEQRegressor)
    double = DEQRegressor(**SMALL).fit(X, y)
    single = DEQRegressor(**SMALL).fit(X.astype(np.float32), y)
    assert_near(single.loss_curve_, double.loss_curve_, 1e-3)


# --- sample weights ---


@pytest.mark.parametrize("cls", BOTH)
def test_weight_zero_is_the_same_as_leaving_out(cls, on_oracle):
    X, y = make_data(cls)
    weight = np.linspace(0.5, 2, 40) * (np.arange(40) % 3 > 0)
    weighted = cls(**SMALL).fit(X, y, sample_weight=weight)
    removed = cls(**SMALL).fit(X[weight > 0], y[weight > 0], sample_weight=weight[weight > 0])
    assert_params_equal(weighted.params_, removed.params_)


@pytest.mark.parametrize("cls", BOTH)
def test_integer_weights_are_repetitions(cls, on_oracle):
    X, y = make_data(cls)
    weight = np.arange(40) % 4
    weighted = cls(**SMALL).fit(X, y, sample_weight=weight)
    repeated = cls(**SMALL).fit(X.repeat(weight, axis=0), y.repeat(weight))
    assert_params_near(weighted.params_, repeated.params_, 1e-9)
    even = cls(**SMALL).fit(X, y)
    assert not np.allclose(even.params_["cell.0.weight"], weighted.params_["cell.0.weight"])


def test_a_class_without_weight_is_no_class(on_oracle):
    X, _ = make_data(DEQClassifier, n=30)
    y = np.arange(30) % 3
    model = DEQClassifier(**SMALL).fit(X, y, sample_weight=(y != 1).astype(float))
    assert model.classes_.tolist() == [0, 2]


# --- how it ends ---


@pytest.mark.parametrize("cls", BOTH)
def test_history(cls, on_oracle):
    X, y = make_data(cls)
    model = cls(**SMALL).fit(X, y)
    assert model.history_.stop_reason == "max_iter"
    assert model.n_iter_ == len(model.history_) == len(model.loss_curve_) == 5
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    assert model.history_.n_failed == [0] * 5
    assert model.engine_ == "oracle"


def test_tol_ends_a_fit_that_no_longer_improves(on_oracle):
    model = DEQRegressor(**SMALL).set_params(max_iter=50, tol=10.0, n_iter_no_change=3)
    model.fit(*make_data(DEQRegressor))
    assert model.history_.stop_reason == "tol"
    assert model.n_iter_ == 5


@pytest.mark.parametrize("random_state", [0, 1, 2, 3])
def test_a_fit_does_not_end_in_the_dip_of_an_overshoot(random_state):
    """y = 2x of the post, with the patience that is the default: 20 epochs, once, and -5.38."""
    settings = {"tol": 1e-4, "n_iter_no_change": 10, "average": True, "alpha": 1e-4}
    model = presets.double(random_state=random_state, engine="jax", **settings)
    model.fit(*presets.double_data())
    assert model.history_.stop_reason == "tol"
    assert model.predict([[-5.0]])[0] == pytest.approx(-10, abs=0.05)
    assert model.n_iter_ < 300


@pytest.mark.parametrize("cls", BOTH)
def test_the_average_is_over_the_ends_of_the_epochs(cls, on_oracle):
    X, y = make_data(cls)
    ends = [cls(**SMALL).set_params(max_iter=n).fit(X, y).params_ for n in (1, 2, 3)]
    model = cls(**SMALL).set_params(max_iter=3, average=True).fit(X, y)
    mean = {n: 0.1 * ends[0][n] + 0.3 * ends[1][n] + 0.6 * ends[2][n] for n in ends[0]}
    assert_params_near(model.params_, mean, 1e-12)


def test_an_interrupted_fit_is_a_fit_of_fewer_epochs(use_engine):
    X, y = make_data(DEQRegressor)
    model = DEQRegressor(**SMALL)
    message = interrupted_fit(use_engine, model, X, y, 3)
    assert message == (
        "fit was interrupted after 3 of 5 epochs; the estimator holds the weights of epoch 3."
    )
    assert model.history_.stop_reason == "interrupted"
    assert model.n_iter_ == 3
    assert_params_equal(
        model.params_, DEQRegressor(**SMALL).set_params(max_iter=3).fit(X, y).params_
    )


def test_a_fit_interrupted_at_once_raises_and_learns_nothing(use_engine):
    model = DEQClassifier(**SMALL)
    use_engine(StubbornEngine())
    with pytest.raises(KeyboardInterrupt):
        model.fit(*make_data(DEQClassifier))
    with pytest.raises(NotFittedError):
        model.predict(np.ones((1, 3)))


def rows_held_out(X, x):
    """Return which of the samples X those are that the engine was asked for while it trained."""
    return [int(np.flatnonzero((row == X).all(axis=1)).item()) for row in x]


@pytest.fixture
def asked(on_oracle, monkeypatch):
    """The samples of each prediction that is asked of the engine."""
    equilibrium, asked = oracle.OracleSession.equilibrium, []
    monkeypatch.setattr(
        oracle.OracleSession,
        "equilibrium",
        lambda session, x: asked.append(x) or equilibrium(session, x),
    )
    return asked


@pytest.mark.parametrize("cls", BOTH)
def test_early_stopping_keeps_the_weights_of_the_best_epoch(cls, asked):
    X, y = make_data(cls, n=80)
    y = np.random.default_rng(0).permutation(y)  # nothing to learn: the best comes early
    weight = np.linspace(1, 2, 80)
    model = cls(**SMALL).set_params(
        early_stopping=True, max_iter=30, validation_fraction=0.25, learning_rate_init=0.2
    )
    model.fit(X, y, sample_weight=weight)
    rows = rows_held_out(X, asked[0])
    assert len(rows) == 20
    scores = model.history_.validation_score
    assert_near(model.score(X[rows], y[rows], weight[rows]), max(scores), 1e-12)
    # The best epoch is neither the last one nor alike: else this would test nothing.
    assert max(scores) - scores[-1] > 1e-3


def test_the_validation_split_is_stratified(asked):
    X, _ = make_data(DEQClassifier, n=100)
    y = np.arange(100) % 5 == 0
    DEQClassifier(**SMALL).set_params(early_stopping=True, validation_fraction=0.2).fit(X, y)
    held_out = y[rows_held_out(X, asked[0])]
    assert (len(held_out), held_out.sum()) == (20, 4)


def test_early_stopping_needs_two_of_each_class(on_oracle):
    X, _ = make_data(DEQClassifier)
    model = DEQClassifier(**SMALL).set_params(early_stopping=True)
    y = np.arange(40) % 2
    y[0] = 2
    with pytest.raises(ValueError, match=r"at least 2 samples of each; 1 of 3 classes have 1"):
        model.fit(X, y)
    with pytest.raises(ValueError, match=r"holds out 4 of 40 .* each of the 5 classes; one part"):
        model.fit(X, np.arange(40) % 5)


def test_early_stopping_needs_two_samples_held_out(no_engine, monkeypatch):
    monkeypatch.undo()
    X, y = make_data(DEQRegressor, n=8)
    with pytest.raises(ValueError, match=r"validation_fraction=0.1 of 8 samples, which is 1; at l"):
        DEQRegressor(early_stopping=True).fit(X, y)


# --- honesty ---


def test_a_prediction_that_is_no_equilibrium_is_told_once_with_the_count():
    X, y = make_data(DEQClassifier)
    # With relu a sample whose hidden units are all off is solved by the first step.
    model = DEQClassifier(**SMALL, activation="tanh").fit(X, y)
    model.set_params(max_steps=1, reltol=1e-8, abstol=0.0)
    for method in (model.predict, model.predict_proba, model.predict_log_proba, model.equilibrium):
        with pytest.warns(ConvergenceWarning, match="^40 of 40 samples did not") as caught:
            method(X)
        assert len(caught) == 1
        assert caught[0].filename == __file__
    assert "max_steps=1 " in str(caught[0].message)


def test_only_the_samples_that_failed_are_counted():
    X, y = make_data(DEQRegressor)
    model = DEQRegressor(**SMALL).fit(X, y)
    model.set_params(solver="fixed_point")
    evals = np.sort(model.equilibrium(X).n_evals)
    model.set_params(max_steps=int(evals[0]) + 1)
    with pytest.warns(ConvergenceWarning) as caught:
        found = model.equilibrium(X)
    assert 0 < found.converged.sum() < 40
    assert str(caught[0].message).startswith(f"{(~found.converged).sum()} of 40 samples")


def test_a_fit_without_any_equilibrium_ends_and_is_told_once():
    X, y = make_data(DEQRegressor)
    model = DEQRegressor(**SMALL).set_params(max_steps=1, reltol=1e-8, abstol=0.0)
    with pytest.warns(ConvergenceWarning, match="^While training, 40 of 40 samples") as caught:
        model.fit(X, y)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert model.history_.stop_reason == "no_equilibrium"
    assert model.n_iter_ == 1


def test_a_fit_that_diverges_keeps_finite_weights_and_says_so(on_oracle):
    X, y = make_data(DEQRegressor)
    model = DEQRegressor(**SMALL).set_params(learning_rate_init=1e300)
    with np.errstate(all="ignore"), pytest.warns(ConvergenceWarning) as caught:
        model.fit(X, 1e100 * y)
    assert any(str(w.message).startswith("Training diverged in epoch") for w in caught)
    assert model.history_.stop_reason == "diverged"
    assert all(np.isfinite(value).all() for value in model.params_.values())


def test_silent_unless_verbose(on_oracle, capsys):
    X, y = make_data(DEQRegressor)
    DEQRegressor(**SMALL).fit(X, y).predict(X)
    assert capsys.readouterr() == ("", "")
    DEQRegressor(**SMALL).set_params(verbose=True).fit(X, y)
    assert "5.0/5" in capsys.readouterr().err
