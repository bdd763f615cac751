"""scikit-learn's own judgement, and its tools around the estimators, all on the JAX engine."""

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris
from sklearn.ensemble import BaggingClassifier, BaggingRegressor
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from pydeq import DEQClassifier, DEQRegressor

# Smaller than the defaults and fitted for fewer epochs; all else is as a user gets it.
SMALL = {"n_state": 16, "hidden_layer_sizes": (16,), "engine": "jax"}
BRIEF = {**SMALL, "learning_rate_init": 0.02, "max_iter": 10}
QUICK = {**SMALL, "learning_rate_init": 0.01, "max_iter": 40}


@parametrize_with_checks([DEQRegressor(**BRIEF), DEQClassifier(**BRIEF)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture
def classifier():
    return make_pipeline(StandardScaler(), DEQClassifier(**QUICK, random_state=0))


def test_cross_val_score(classifier, iris):
    assert cross_val_score(classifier, *iris, cv=3).mean() > 0.93


def test_grid_search_in_two_processes(classifier, iris):
    grid = {"deqclassifier__learning_rate_init": [1e-5, 1e-2]}
    search = GridSearchCV(classifier, grid, cv=2, n_jobs=2).fit(*iris)
    assert search.best_params_["deqclassifier__learning_rate_init"] == 1e-2
    assert search.best_score_ > 0.93
    assert search.score(*iris) > 0.93


def test_calibrated_classifier(classifier, iris):
    X, y = iris
    model = CalibratedClassifierCV(classifier, cv=2).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1)
    assert model.score(X, y) > 0.93


@pytest.mark.parametrize("cls", [BaggingClassifier, BaggingRegressor])
def test_bagging(cls, iris):
    X, y = iris
    inner = DEQClassifier if cls is BaggingClassifier else DEQRegressor
    base = make_pipeline(StandardScaler(), inner(**QUICK))
    model = cls(base, n_estimators=3, random_state=0).fit(X, y)
    assert model.score(X, y) > 0.9
    first, second, _ = (member.predict(X) for member in model.estimators_)
    assert not np.array_equal(first, second)


def test_scorers_that_need_probabilities(classifier, iris):
    classifier.fit(*iris)
    assert get_scorer("neg_log_loss")(classifier, *iris) > -0.3
    assert get_scorer("roc_auc_ovr")(classifier, *iris) > 0.98
