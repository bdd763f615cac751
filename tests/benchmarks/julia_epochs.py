"""An epoch and a prediction by the JAX and by the Julia engine, in one process, by turns.

    python tests/benchmarks/julia_epochs.py --data FOLDER
    python tests/benchmarks/julia_epochs.py --data FOLDER --only mnist_conv --samples 2000

Prints the median seconds and CPU seconds of a ``partial_fit`` on 20,000 images of MNIST and of a
prediction of half as many, then Julia's over JAX's. A first round, in which both compile, does not
count.
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
    "mnist_conv": presets.mnist_conv,
}


def spent(work):
    """Return the seconds and the CPU seconds that a call takes."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def measure(make, x, y, x_test, rounds):
    """Return of each engine an array (rounds, 4): epoch and prediction, seconds and CPU seconds."""
    models = {engine: make(engine=engine, random_state=0) for engine in ("jax", "julia")}
    found = {engine: [] for engine in models}
    for number in range(rounds + 1):
        for engine, model in models.items():
            epoch = spent(lambda model=model: model.partial_fit(x, y, classes=CLASSES))
            row = *epoch, *spent(lambda model=model: model.predict(x_test))
            if number:
                found[engine].append(row)
    return {engine: np.array(rows) for engine, rows in found.items()}


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of MNIST.")
@click.option("--only", type=click.Choice(list(CASES)), multiple=True, help="Of the cases.")
@click.option("--samples", default=20_000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(data, only, samples, rounds):
    """Measure each case in each engine."""
    x, y, x_test, _ = load_mnist(data)
    for name in only or CASES:
        medians = {
            engine: np.median(rows, axis=0)
            for engine, rows in measure(
                CASES[name], x[:samples], y[:samples], x_test[: samples // 2], rounds
            ).items()
        }
        medians["ratio"] = medians["julia"] / medians["jax"]
        for engine, row in medians.items():
            print(
                f"{name:16} {engine:6} epoch {row[0]:5.2f} (CPU {row[1]:5.2f})  "
                f"prediction {row[2]:5.2f} (CPU {row[3]:5.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
