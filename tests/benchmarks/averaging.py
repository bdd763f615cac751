"""What `average` is worth: test scores with and without it, after 3, 10 and 50 epochs.

python tests/benchmarks/averaging.py [--mnist FOLDER] [--samples 5000] [--seeds 3]

Each score is a mean over seeds, on a held-out third of scikit-learn's sets, on the first 2,000 test
images of MNIST (trained on the first `--samples`, one seed).
"""

import warnings
from pathlib import Path

import click
import numpy as np
from sklearn import datasets
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from pydeq import DEQClassifier, DEQRegressor
from pydeq.datasets import load_mnist

EPOCHS = (3, 10, 50)

TABULAR = {
    "iris": (datasets.load_iris, DEQClassifier),
    "wine": (datasets.load_wine, DEQClassifier),
    "breast_cancer": (datasets.load_breast_cancer, DEQClassifier),
    "digits": (datasets.load_digits, DEQClassifier),
    "diabetes": (datasets.load_diabetes, DEQRegressor),
}

BLOG_CELL = {"n_state": 100, "hidden_layer_sizes": (500,), "activation": "tanh"}


def tabular(name, seed):
    """Return a set's scaled training and test part."""
    X, y = TABULAR[name][0](return_X_y=True)
    parts = train_test_split(X, y, test_size=1 / 3, random_state=seed)
    scaler = StandardScaler().fit(parts[0])
    return scaler.transform(parts[0]), scaler.transform(parts[1]), parts[2], parts[3]


def score(model, data, n_epochs, average, seed):
    """Return the test score of a fit of so many epochs."""
    X, X_test, y, y_test = data
    model.set_params(max_iter=n_epochs, n_iter_no_change=np.inf, average=average, engine="jax")
    return model.set_params(random_state=seed).fit(X, y).score(X_test, y_test)


def row(name, make, data, seeds):
    """Print the scores without and with averaging after each number of epochs."""
    cells = []
    for n_epochs in EPOCHS:
        last, mean = (
            np.mean([score(make(), data(s), n_epochs, average, s) for s in range(seeds)])
            for average in (False, True)
        )
        cells.append(f"{last:.4f} / {mean:.4f}")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


@click.command()
@click.option("--mnist", type=click.Path(path_type=Path), help="Folder of the MNIST files.")
@click.option("--samples", default=5000, show_default=True, help="Of MNIST, to train on.")
@click.option("--seeds", default=3, show_default=True, help="Of the other sets.")
def main(mnist: Path | None, samples: int, seeds: int) -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    print(f"| last / averaged | {' | '.join(f'{n} epochs' for n in EPOCHS)} |")
    print(f"| --- |{' --- |' * len(EPOCHS)}")
    for name, (_, cls) in TABULAR.items():
        row(name, cls, lambda seed, name=name: tabular(name, seed), seeds)
    if mnist:
        X, y, X_test, y_test = load_mnist(mnist)
        images = (X[:samples], X_test[:2000], y[:samples], y_test[:2000])
        row("MNIST, default", DEQClassifier, lambda seed: images, 1)
        row("MNIST, the post's cell", lambda: DEQClassifier(**BLOG_CELL), lambda seed: images, 1)


if __name__ == "__main__":
    main()
