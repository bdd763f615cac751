"""What goes into an estimator and comes out; on the numpy oracle where no engine matters."""

import inspect
import pickle

import numpy as np
import pandas as pd
import pytest
from estimator_cases import BOTH, SMALL, make_data
from helpers import assert_near, assert_params_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import pydeq.estimators.base
from pydeq import DEQClassifier, DEQRegressor

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
    options = {"horizon": 1.0, "stability": "none", "max_iter": 60, "max_steps": 50}
    model = DEQRegressor(**SMALL).set_params(**options).fit(X, y)
    assert model.score(X, y) > 0.8
    found = model.equilibrium(X)
    assert found.converged.all()
    assert found.residual.min() > 1e-3  # far from an equilibrium, and no warning
