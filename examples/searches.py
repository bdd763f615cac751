"""Many fits on Dask: a search over two workers, then training and predicting block by block.

Needs `pip install pydeq[scale]`. The cluster here is two processes of this machine; a `Client` with
the address of a scheduler takes those of others.
"""

import logging
import warnings
from pathlib import Path

import joblib
import matplotlib
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split

from pydeq import DEQClassifier

SETTINGS = {"n_state": 16, "hidden_layer_sizes": 16, "random_state": 0, "engine": "jax"}


def main() -> None:
    matplotlib.use("Agg")
    # Few epochs are enough to compare by, and Dask's own warnings are not ours to end at.
    warnings.simplefilter("ignore")
    import dask.array
    from dask_ml.wrappers import Incremental, ParallelPostFit
    from distributed import Client

    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0)
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    # A worker that is slow to end is ended with a warning.
    with Client(**settings, silence_logs=logging.ERROR):
        # 1. A search: joblib sends each fit to a worker.
        grid = {"learning_rate_init": [1e-4, 1e-3, 1e-2]}
        search = GridSearchCV(DEQClassifier(**SETTINGS, max_iter=3), grid, cv=2, n_jobs=2)
        with joblib.parallel_backend("dask"):
            search.fit(X_train, y_train)
        rate = search.best_params_["learning_rate_init"]
        print(f"best learning rate: {rate:g}")

        # 2. One model, trained block by block by partial_fit, wherever a block lies.
        blocks = dask.array.from_array(X_train, (450, 64))
        labels = dask.array.from_array(y_train, 450)
        model = Incremental(DEQClassifier(**SETTINGS, learning_rate_init=rate))
        for _ in range(6):
            model.partial_fit(blocks, labels, classes=range(10))

        # 3. Each worker predicts the blocks that it has.
        fitted = ParallelPostFit(model.estimator_)
        predicted = fitted.predict(dask.array.from_array(X_test, (225, 64))).compute()
    print(f"test accuracy after six passes: {(predicted == y_test).mean():.2f}")

    Path("out").mkdir(exist_ok=True)
    rates, scores = grid["learning_rate_init"], search.cv_results_["mean_test_score"]
    figure, axes = plt.subplots()
    axes.semilogx(rates, scores, "o-")
    axes.set(xlabel="learning rate", ylabel="accuracy of two folds after three epochs")
    figure.savefig("out/searches.png")


if __name__ == "__main__":
    main()
