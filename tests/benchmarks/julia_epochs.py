"""An epoch and a prediction by the JAX and by the Julia engine, in one process, by turns.

    python tests/benchmarks/julia_epochs.py --data FOLDER

Prints seconds: of each ``partial_fit`` on 20,000 images of MNIST, and of predicting 10,000. A first
fit on 400, in which both compile, is not counted.
"""

import time
from pathlib import Path

import click
import numpy as np

from pydeq import DEQClassifier, presets
from pydeq.datasets import load_mnist

CLASSES = np.arange(10)
CASES = {
    "DEQClassifier()": DEQClassifier,
    "contractive": lambda **settings: DEQClassifier(
        n_state=100, hidden_layer_sizes=(500,), activation="tanh", batch_size=128, **settings
    ),
    "mnist at 1e-3": lambda **settings: presets.mnist(abstol=1e-3, reltol=1e-3, **settings),
}


def seconds(work):
    """Return how long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of MNIST.")
def main(data):
    """Measure each case in each engine."""
    x, y, x_test, _ = load_mnist(data)
    x, y = x[:20_000], y[:20_000]
    for name, make in CASES.items():
        models = {engine: make(engine=engine, random_state=0) for engine in ("jax", "julia")}
        for model in models.values():
            model.partial_fit(x[:400], y[:400], classes=CLASSES)
            model.predict(x_test[:400])
        for engine, model in [*models.items()] * 2:
            epoch = seconds(lambda model=model: model.partial_fit(x, y))
            prediction = seconds(lambda model=model: model.predict(x_test))
            row = f"{name:16} {engine:6} epoch {epoch:6.2f} prediction {prediction:6.2f}"
            print(row, flush=True)


if __name__ == "__main__":
    main()
