"""Fits that go on from what was learned: ``partial_fit`` and ``warm_start``."""

import numpy as np
import oracle
import pytest
from estimator_cases import BOTH, SMALL, make_data
from helpers import assert_near, assert_params_near
from sklearn.exceptions import NotFittedError

from pydeq import DEQClassifier, DEQRegressor

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
