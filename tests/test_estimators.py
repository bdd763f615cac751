"""The estimators, on the numpy oracle where the engine does not matter and on JAX where it does."""

import inspect
import pickle

import numpy as np
import oracle
import pandas as pd
import pytest
from helpers import assert_near, assert_params_equal, assert_params_near
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import pydeq.estimators.base
from pydeq import ConvergenceWarning, DEQClassifier, DEQRegressor, presets

SMALL = {
    "n_state": 6,
    "hidden_layer_sizes": 8,
    "learning_rate_init": 0.01,
    "max_iter": 5,
    "average": False,
    "random_state": 0,
}
BOTH = [DEQRegressor, DEQClassifier]


def make_data(cls, n=40, n_features=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, n_features))
    y = np.sin(X[:, 0]) + X[:, 1]
    return X, y if cls is DEQRegressor else np.array(["no", "yes"])[(y > 0).astype(int)]


class StubbornEngine(oracle.OracleEngine):
    """An oracle whose epochs are cut off by Ctrl-C after `n_epochs`."""

    n_epochs = 0

    def open(self, *args, **kwargs):
        session = super().open(*args, **kwargs)
        epoch, train_epoch = 0, session.train_epoch

        def interrupted(order, batch_size, on_batch=None):
            nonlocal epoch
            epoch += 1
            if epoch > self.n_epochs:
                raise KeyboardInterrupt
            return train_epoch(order, batch_size, on_batch)

        session.train_epoch = interrupted
        return session


@pytest.fixture
def use_engine(monkeypatch):
    def use(engine):
        monkeypatch.setattr(pydeq.estimators.base, "get_engine", lambda *_: engine)

    return use


@pytest.fixture
def on_oracle(use_engine):
    use_engine(oracle.OracleEngine())


@pytest.fixture
def no_engine(monkeypatch):
    def refuse(*asked):
        raise AssertionError("the engine was asked for before the check")

    monkeypatch.setattr(pydeq.estimators.base, "get_engine", refuse)


def interrupted_fit(use_engine, model, X, y, n_epochs, **fit):
    """Fit with Ctrl-C after `n_epochs`; return the warning."""
    engine = StubbornEngine()
    engine.n_epochs = n_epochs
    use_engine(engine)
    with pytest.warns(UserWarning, match="was interrupted") as caught:
        model.fit(X, y, **fit)
    use_engine(oracle.OracleEngine())
    assert len(caught) == 1
    return str(caught[0].message)


# --- parameters ---


@pytest.mark.parametrize("cls", BOTH)
def test_parameters_are_keyword_only_stored_as_they_are_and_documented(cls):
    values = {name: object() for name in inspect.signature(cls).parameters}
    assert cls(**values).get_params(deep=False) == values
    kinds = {p.kind for p in inspect.signature(cls).parameters.values()}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}
    section = cls.__doc__.split("Parameters\n")[1].split("Attributes\n")[0]
    lines = [line.strip() for line in section.splitlines() if " : " in line]
    documented = [name for line in lines for name in line.split(" : ")[0].split(", ")]
    assert documented == list(values)


@pytest.mark.parametrize("cls", BOTH)
def test_an_unfitted_estimator_says_so(cls, tmp_path):
    X = np.ones((1, 2))
    calls = {"predict": (X,), "equilibrium": (X,), "trajectory": (X, 3), "save": (tmp_path / "m",)}
    if cls is DEQClassifier:
        calls |= {"predict_proba": (X,), "predict_log_proba": (X,)}
    for method, args in calls.items():
        with pytest.raises(NotFittedError):
            getattr(cls(), method)(*args)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("name", ["loss_curve_", "n_iter_", "classes_", "params_"])
def test_an_unfitted_estimator_has_no_fitted_attributes(cls, name):
    assert not hasattr(cls(), name)


# --- bad input, before any computing ---

BAD_DATA = {
    "contains NaN": ([[np.nan, 1.0], [1.0, 2.0]], [0, 1]),
    "contains infinity": ([[np.inf, 1.0], [1.0, 2.0]], [0, 1]),
    "0 sample": (np.empty((0, 2)), []),
    r"0 feature\(s\)": (np.empty((2, 0)), [0, 1]),
    "inconsistent numbers of samples": ([[1.0, 2.0]], [0, 1]),
    "Expected 2D array": ([1.0, 2.0], [0, 1]),
}


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("message", BAD_DATA)
def test_bad_data_is_refused(cls, message, no_engine):
    with pytest.raises(ValueError, match=message):
        cls().fit(*BAD_DATA[message])


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("activation", "softplus"),
        ("solver", "rk4"),
        ("engine", "torch"),
        ("reltol", -1.0),
        ("batch_size", 0),
        ("verbose", "loud"),
        ("warm_start", 1),
        ("early_stopping", "yes"),
        ("random_state", "zero"),
    ],
)
def test_bad_parameters_are_refused(cls, name, value, no_engine):
    model = cls(**{name: value})
    with pytest.raises(ValueError, match=f"{name}|seed"):
        model.fit(*make_data(cls))
    assert not hasattr(model, "params_")


@pytest.mark.parametrize("cls", BOTH)
def test_n_state_none_needs_equal_widths(cls, no_engine):
    with pytest.raises(ValueError, match=r"X has 3 feature\(s\)"):
        cls(n_state=None).fit(*make_data(cls))


def test_one_class_is_refused(no_engine):
    with pytest.raises(ValueError, match=r"at least 2 classes; got 1 class: \['a'\]"):
        DEQClassifier().fit([[1.0], [2.0]], ["a", "a"])


def test_a_continuous_target_is_no_class(no_engine):
    with pytest.raises(ValueError, match="continuous"):
        DEQClassifier().fit([[1.0], [2.0]], [0.5, 1.5])


def test_a_target_beyond_the_dtype_of_x_is_refused(no_engine):
    X = np.ones((2, 1), np.float32)
    with pytest.raises(ValueError, match=r"y reaches 1e.300, too large for float32"):
        DEQRegressor().fit(X, [1.0, -1e300])


@pytest.mark.parametrize("cls", BOTH)
def test_wrong_number_of_features_in_predict(cls, on_oracle):
    model = cls(**SMALL).fit(*make_data(cls))
    with pytest.raises(ValueError, match=r"X has 2 features, but .* is expecting 3"):
        model.predict(np.ones((4, 2)))


# --- what goes in and what comes out ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cls", BOTH)
def test_work_is_done_in_the_dtype_of_x(cls, dtype):
    X, y = make_data(cls)
    model = cls(**SMALL).fit(X.astype(dtype), y)
    assert {value.dtype.name for value in model.params_.values()} == {dtype}
    found = model.equilibrium(X)  # float64 samples do not change the model's dtype
    assert {found.state.dtype.name, found.output.dtype.name} == {dtype}
    assert model.trajectory(X, 2).dtype == dtype
    if cls is DEQClassifier:
        assert model.predict_proba(X).dtype == model.predict_log_proba(X).dtype == dtype
    else:
        assert model.predict(X).dtype == dtype


@pytest.mark.parametrize("dtype", ["int64", "float16", "bool"])
def test_everything_but_float32_is_worked_with_in_float64(dtype, on_oracle):
    X = (np.arange(20) % 5).reshape(10, 2).astype(dtype)
    model = DEQRegressor(**SMALL).fit(X, np.arange(10))
    assert model.params_["cell.0.weight"].dtype == np.float64


@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 3)])
def test_predictions_have_the_shape_of_y(shape, on_oracle):
    X, _ = make_data(DEQRegressor)
    y = np.random.default_rng(0).normal(size=shape)
    model = DEQRegressor(**SMALL).fit(X, y)
    assert model.predict(X).shape == shape
    assert model.model_spec_.n_outputs == (1 if len(shape) == 1 else shape[1])
    assert model.__sklearn_tags__().target_tags.multi_output


def test_multi_output_learns_each_column():
    X, y = make_data(DEQRegressor, n=60)
    model = DEQRegressor(**SMALL).set_params(max_iter=200).fit(X, np.column_stack([y, 5 - y]))
    first, second = model.predict(X).T
    assert np.corrcoef(first, y)[0, 1] > 0.95
    assert np.corrcoef(second, y)[0, 1] < -0.95


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["b", "a", "c"]),
        np.array(["b", "a", "c"], dtype=object),
        np.array([3, -1, 10]),
        np.array([1.0, 0.0, 2.0]),
    ],
)
def test_labels_come_back_as_they_were(labels, on_oracle):
    X, _ = make_data(DEQClassifier, n=30)
    y = np.tile(labels, 10)
    model = DEQClassifier(**SMALL).fit(X, y)
    np.testing.assert_array_equal(model.classes_, np.sort(labels))
    assert model.predict(X).dtype == labels.dtype
    assert set(model.predict(X)) <= set(labels)
    assert model.predict_proba(X).shape == (30, 3)


def test_probabilities_of_two_classes(on_oracle):
    X, y = make_data(DEQClassifier)
    model = DEQClassifier(**SMALL).set_params(max_iter=60).fit(X, y == "yes")
    proba = model.predict_proba(X)
    assert model.classes_.tolist() == [False, True]
    assert proba.shape == (40, 2)
    assert_near(proba.sum(axis=1), np.ones(40), 1e-12)
    assert_near(model.predict_log_proba(X), np.log(proba), 1e-12)
    np.testing.assert_array_equal(model.predict(X), proba[:, 1] > proba[:, 0])
    assert model.score(X, y == "yes") > 0.9


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_decision_function_is_of_logits(n_classes, on_oracle):
    X, _ = make_data(DEQClassifier)
    model = DEQClassifier(**SMALL).fit(X, np.arange(40) % n_classes)
    decision, proba = model.decision_function(X), model.predict_proba(X)
    if n_classes == 2:
        assert decision.shape == (40,)
        assert_near(1 / (1 + np.exp(-decision)), proba[:, 1], 1e-12)
        np.testing.assert_array_equal(decision > 0, model.predict(X) == 1)
    else:
        np.testing.assert_array_equal(decision, model.equilibrium(X).output)
        np.testing.assert_array_equal(decision.argmax(axis=1), model.predict(X))


@pytest.mark.parametrize("which", ["X", "y", "sample_weight", "rows"])
@pytest.mark.parametrize("cls", BOTH)
def test_masked_values_are_refused(cls, which, on_oracle):
    X, y = make_data(cls)
    given = {"X": X, "y": y, "sample_weight": np.ones(40)}
    name = "X" if which == "rows" else which
    values = np.ma.array(given[name])
    fitted = cls(**SMALL).fit(**given | {name: values})  # nothing is masked
    values[3] = np.ma.masked
    given[name] = list(values) if which == "rows" else values
    with pytest.raises(ValueError, match=f"^{name} has masked values"):
        cls(**SMALL).fit(**given)
    if name == "X":
        with pytest.raises(ValueError, match=r"^X has masked values"):
            fitted.predict(given["X"])


@pytest.mark.parametrize("size", [1e37, 1e-40])
@pytest.mark.parametrize("cls", BOTH)
def test_float32_fits_with_weights_of_any_size(cls, size):
    X, y = make_data(cls)
    model = cls(**SMALL).set_params(engine="jax")
    weight = np.linspace(1, 2, 40)
    expected = model.fit(X.astype("f4"), y, weight / weight.mean()).loss_curve_
    assert np.isfinite(expected).all()
    assert_near(model.fit(X.astype("f4"), y, size * weight).loss_curve_, expected, 1e-3)


def test_feature_names_are_kept_and_checked(on_oracle):
    X, y = make_data(DEQRegressor)
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = DEQRegressor(**SMALL).fit(frame, pd.Series(y))
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(model.predict(frame), DEQRegressor(**SMALL).fit(X, y).predict(X))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame.rename(columns={"a": "z"}))


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


# --- going on: partial_fit and warm_start ---


@pytest.mark.parametrize("cls", BOTH)
def test_calls_of_partial_fit_are_the_epochs_of_a_fit(cls, on_oracle):
    X, y = make_data(cls)
    options = {"batch_size": 7, "n_iter_no_change": np.inf}
    fitted = cls(**SMALL).set_params(**options).fit(X, y)
    model = cls(**SMALL).set_params(**options)
    classes = {} if cls is DEQRegressor else {"classes": ["no", "yes"]}
    for epoch in range(5):
        assert model.partial_fit(X, y, **classes) is model
        assert model.n_iter_ == epoch + 1
        classes = {}
    assert_params_near(model.params_, fitted.params_, 1e-12)
    assert_near(model.loss_curve_, fitted.loss_curve_, 1e-12)


def test_partial_fit_goes_on_after_fit(on_oracle):
    X, y = make_data(DEQRegressor)
    whole = DEQRegressor(**SMALL).set_params(max_iter=6).fit(X, y)
    model = DEQRegressor(**SMALL).fit(X, y).partial_fit(X, y)
    assert_params_near(model.params_, whole.params_, 1e-12)


def test_the_jacobian_probes_of_partial_fit_differ_from_call_to_call(use_engine):
    seeds = []

    class Recorder(oracle.OracleEngine):
        def open(self, model, solver, optimizer, *rest):
            seeds.append(optimizer.seed)
            return super().open(model, solver, optimizer, *rest)

    use_engine(Recorder())
    X, y = make_data(DEQRegressor)
    model = DEQRegressor(**SMALL).set_params(stability="jacobian")
    for _ in range(3):
        model.partial_fit(X, y)
    assert len(set(seeds)) == 3


def test_partial_fit_sees_classes_that_come_later(on_oracle):
    X, y = make_data(DEQClassifier)
    model = DEQClassifier(**SMALL)
    model.partial_fit(X[y == "no"], y[y == "no"], classes=["yes", "no", "maybe"])
    model.partial_fit(X, y)
    assert model.classes_.tolist() == ["maybe", "no", "yes"]
    assert model.predict_proba(X).shape == (40, 3)


def test_partial_fit_needs_classes_first():
    with pytest.raises(ValueError, match="first call to partial_fit needs classes"):
        DEQClassifier(**SMALL).partial_fit(*make_data(DEQClassifier))


def test_partial_fit_names_unseen_labels(on_oracle):
    X, y = make_data(DEQClassifier)
    model = DEQClassifier(**SMALL).partial_fit(X, y, classes=["no", "yes"])
    with pytest.raises(
        ValueError, match=r"unseen labels: \['never'\]; the classes are \['no', 'yes'\]"
    ):
        model.partial_fit(X[:2], ["yes", "never"])
    with pytest.raises(ValueError, match=r"differs from the classes .* \['no', 'yes'\]"):
        model.partial_fit(X, y, classes=["no", "never"])


def test_partial_fit_of_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes"):
        DEQClassifier(**SMALL).partial_fit([[1.0]], [1], classes=[1])


def test_a_first_partial_fit_that_failed_leaves_an_unfitted_estimator(on_oracle):
    X, y = make_data(DEQClassifier)
    model = DEQClassifier(**SMALL)
    with pytest.raises(ValueError, match="unseen labels"):
        model.partial_fit(X, y, classes=["a", "b"])
    with pytest.raises(NotFittedError):
        model.predict(X)
    model.partial_fit(X, y, classes=["no", "yes"])


def test_partial_fit_holds_nothing_out():
    with pytest.raises(ValueError, match="partial_fit does not support early_stopping=True"):
        DEQRegressor(early_stopping=True).partial_fit(*make_data(DEQRegressor))


@pytest.mark.parametrize(
    "change", [{"n_state": 7}, {"activation": "tanh"}, {"stability": "none"}, {"horizon": 3.0}]
)
@pytest.mark.parametrize("action", ["partial_fit", "warm_start=True"])
def test_going_on_with_another_model_is_refused(change, action, on_oracle):
    X, y = make_data(DEQRegressor)
    model = DEQRegressor(**SMALL).fit(X, y).set_params(**change)
    go_on = model.partial_fit if action == "partial_fit" else model.set_params(warm_start=True).fit
    with pytest.raises(ValueError, match=f"^{action} goes on .*{next(iter(change))} was"):
        go_on(X, y)


@pytest.mark.parametrize("cls", BOTH)
def test_warm_start_goes_on_from_the_weights(cls, on_oracle):
    X, y = make_data(cls)
    model = cls(**SMALL).set_params(warm_start=True, max_iter=40)
    first = model.fit(X, y).loss_curve_
    second = model.fit(X, y).loss_curve_
    assert model.n_iter_ == 40
    assert second[0] < (first[0] + first[-1]) / 2
    assert second[-1] < first[-1]
    # The optimiser is a new one: Adam's count is that of the second fit alone.
    assert model.optimizer_state_["count"] == 40


def test_warm_start_knows_the_classes(on_oracle):
    X, y = make_data(DEQClassifier)
    model = DEQClassifier(**SMALL).set_params(warm_start=True).fit(X, y)
    with pytest.raises(ValueError, match="unseen labels"):
        model.fit(X, np.where(y == "no", "never", y))
    with pytest.raises(ValueError, match="is expecting 3 features"):
        model.fit(X[:, :2], y)


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
    mean = {name: (ends[0][name] + ends[1][name] + ends[2][name]) / 3 for name in ends[0]}
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


# --- after the fit ---


@pytest.mark.parametrize("cls", BOTH)
def test_predicting_changes_nothing(cls, on_oracle):
    X, y = make_data(cls)
    model = cls(**SMALL).fit(X, y)
    before = {**vars(model)}
    model.predict(X)
    model.equilibrium(X)
    model.trajectory(X, 2)
    model.score(X, y)
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is before[name] for name in before)


@pytest.mark.parametrize("cls", BOTH)
def test_pickle_and_clone(cls):
    X, y = make_data(cls)
    model = cls(**SMALL).fit(X, y)
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.predict(X), model.predict(X))
    assert copy.history_ == model.history_
    assert not hasattr(clone(model), "params_")
    assert_params_equal(clone(model).fit(X, y).params_, model.params_)
    assert_params_equal(copy.partial_fit(X, y).params_, model.partial_fit(X, y).params_)


def test_solver_settings_can_be_changed_after_the_fit():
    X, y = make_data(DEQRegressor)
    model = DEQRegressor(**SMALL).fit(X, y)
    loose = model.equilibrium(X)
    tight = model.set_params(abstol=1e-10, reltol=1e-10).equilibrium(X)
    assert tight.residual.max() < 1e-8 < loose.residual.max()
    other = model.set_params(solver="tsit5").equilibrium(X)
    assert_near(other.state, tight.state, 1e-8)
    assert other.n_evals.mean() > tight.n_evals.mean()


def test_the_model_stays_the_one_that_was_fitted(on_oracle):
    X, y = make_data(DEQRegressor)
    model = DEQRegressor(**SMALL).fit(X, y)
    before = model.predict(X)
    model.set_params(n_state=3, hidden_layer_sizes=(), activation="relu", stability="none")
    np.testing.assert_array_equal(model.predict(X), before)


def test_bad_solver_settings_after_the_fit_are_refused(on_oracle):
    X, y = make_data(DEQRegressor)
    model = DEQRegressor(**SMALL).fit(X, y).set_params(max_steps=0)
    with pytest.raises(ValueError, match=r"^max_steps must be"):
        model.predict(X)


def test_equilibrium_is_one_and_its_output_is_the_prediction():
    X, y = make_data(DEQRegressor)
    model = DEQRegressor(**SMALL).set_params(abstol=1e-9, reltol=1e-9).fit(X, y)
    found = model.equilibrium(X)
    assert found.state.shape == (40, 6)
    assert found.residual.shape == found.n_evals.shape == found.converged.shape == (40,)
    assert found.converged.all()
    assert (found.n_evals > 1).all()
    decoded = found.state @ model.params_["decoder.weight"] + model.params_["decoder.bias"]
    decoded = model.target_mean_ + model.target_scale_ * decoded
    assert_near(found.output, decoded, 1e-12)
    np.testing.assert_array_equal(model.predict(X), found.output[:, 0])
    # Further iterates of the state stay where they are, and the trajectory ends there.
    trajectory = model.trajectory(X, 200)
    assert trajectory.shape == (201, 40, 6)
    assert_near(trajectory[-1], found.state, 1e-7)
    assert np.abs(trajectory[0] - found.state).max() > 1e-3


def test_blocks_of_a_prediction_are_put_together(on_oracle, monkeypatch):
    X, y = make_data(DEQRegressor)
    model = DEQRegressor(**SMALL).fit(X, y)
    whole = model.equilibrium(X, certify=True)
    monkeypatch.setattr(
        pydeq.estimators.samples, "iter_blocks", lambda n, size: [slice(0, 17), slice(17, n)]
    )
    parts = model.equilibrium(X, certify=True)
    for name in ("state", "output", "converged"):
        assert_near(getattr(parts, name), getattr(whole, name), 1e-9)
    assert parts.residual.shape == parts.n_evals.shape == (40,)
    for name in ("spectral_abscissa", "distance_bound"):
        found, expected = (getattr(e.certificates, name) for e in (parts, whole))
        assert found.shape == expected.shape == (40,)
    assert_near(model.predict(X), whole.output[:, 0], 1e-9)


@pytest.mark.parametrize("depth", [-1, 2.5])
def test_trajectory_refuses_a_depth_that_is_none(depth, on_oracle):
    X, y = make_data(DEQRegressor)
    with pytest.raises(ValueError, match=r"^depth must be"):
        DEQRegressor(**SMALL).fit(X, y).trajectory(X, depth)


def test_a_finite_horizon_learns_without_an_equilibrium():
    X, y = make_data(DEQRegressor)
    options = {"horizon": 1.0, "stability": "none", "max_iter": 100, "max_steps": 50}
    model = DEQRegressor(**SMALL).set_params(**options).fit(X, y)
    assert model.score(X, y) > 0.8
    found = model.equilibrium(X)
    assert found.converged.all()
    assert found.residual.min() > 1e-3  # far from an equilibrium, and no warning


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
