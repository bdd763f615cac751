"""Many fits on Dask: searches by joblib's backend, and dask_ml's wrappers around an estimator."""

import contextlib
import logging
import warnings

import joblib
import numpy as np
import pytest
from example_cases import run_example
from sklearn.model_selection import GridSearchCV

from pydeq import DEQClassifier

distributed = pytest.importorskip("distributed")
GIVEN = {"n_state": 4, "hidden_layer_sizes": 5, "max_iter": 3, "random_state": 0, "engine": "jax"}
X = np.random.default_rng(0).normal(size=(80, 3))
Y = (X[:, 0] > 0).astype(int)


@pytest.fixture(scope="module")
def client():
    """Two workers of this machine."""
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dask's own
        with distributed.Client(**settings, silence_logs=logging.ERROR) as client:
            yield client


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("client")
def test_a_search_on_two_workers_finds_what_one_process_finds():
    grid = {"learning_rate_init": [1e-3, 3e-2]}

    def search():
        return GridSearchCV(DEQClassifier(**GIVEN), grid, cv=2, n_jobs=2)

    expected = search().set_params(n_jobs=1).fit(X, Y)
    with joblib.parallel_backend("dask"):
        found = search().fit(X, Y)
    assert found.best_params_ == expected.best_params_
    scores = "mean_test_score"
    np.testing.assert_array_equal(found.cv_results_[scores], expected.cv_results_[scores])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("client")
def test_dask_ml_trains_and_predicts_block_by_block():
    wrappers = pytest.importorskip("dask_ml.wrappers")
    import dask.array

    blocks, labels = dask.array.from_array(X, (40, 3)), dask.array.from_array(Y, 40)
    expected = DEQClassifier(**GIVEN)
    for rows in (slice(0, 40), slice(40, 80)):
        expected.partial_fit(X[rows], Y[rows], classes=[0, 1])
    model = wrappers.Incremental(DEQClassifier(**GIVEN), shuffle_blocks=False)
    model.fit(blocks, labels, classes=[0, 1])
    whole = wrappers.ParallelPostFit(model.estimator_)
    found = np.asarray(whole.predict_proba(blocks))
    np.testing.assert_allclose(found, expected.predict_proba(X), rtol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("close_figures")
def test_the_example_runs(client, tmp_path, monkeypatch, capsys):
    pytest.importorskip("dask_ml")
    # Its own cluster would be another two processes like these.
    monkeypatch.setattr(distributed, "Client", lambda **_: contextlib.nullcontext(client))
    monkeypatch.chdir(tmp_path)
    run_example("searches.py")
    assert "best learning rate: 0.01" in capsys.readouterr().out
