"""An epoch and a prediction by the JAX engine on an NVIDIA GPU and on the CPU, by turns.

    python tests/benchmarks/devices.py --data FOLDER

Prints the median seconds of a ``partial_fit`` on 10,000 images of MNIST and of a prediction of
10,000, the loss after it, and by how much the devices' predictions from the same weights differ. A
first round, in which both compile, does not count.
"""

import time
from pathlib import Path

import click
import numpy as np

from pydeq import DEQClassifier, presets
from pydeq.datasets import load_mnist

CLASSES = np.arange(10)
N_SAMPLES = 10_000
CASES = {
    "DEQClassifier()": DEQClassifier,
    "mnist at 1e-3": lambda **settings: presets.mnist(abstol=1e-3, reltol=1e-3, **settings),
    "mnist_conv": presets.mnist_conv,
    "mnist_multiscale": presets.mnist_multiscale,
}


def seconds(work):
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(make, x, y, x_test, rounds):
    """Return the model of each device, and of each an array (rounds, 2): epoch and prediction."""
    models = {
        device: make(engine="jax", device=device, random_state=0) for device in ("cpu", "cuda")
    }
    found = {device: [] for device in models}
    for number in range(rounds + 1):
        for device, model in models.items():
            epoch = seconds(lambda model=model: model.partial_fit(x, y, classes=CLASSES))
            row = epoch, seconds(lambda model=model: model.predict(x_test))
            if number:
                found[device].append(row)
    return models, {device: np.array(rows) for device, rows in found.items()}


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of MNIST.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(CASES)), help="Not all cases.")
def main(data, rounds, only):
    """Measure each case on each device."""
    x, y, x_test, _ = load_mnist(data)
    for name in only or CASES:
        models, rows = measure(CASES[name], x[:N_SAMPLES], y[:N_SAMPLES], x_test, rounds)
        for device, model in models.items():
            epoch, prediction = np.median(rows[device], axis=0)
            print(
                f"{name:16} {device:5} epoch {epoch:6.2f} s  prediction {prediction:6.2f} s  "
                f"loss {model.loss_curve_[-1]:.5f}",
                flush=True,
            )
        models["cpu"].set_params(device="cuda")
        there = models["cpu"].predict_proba(x_test)
        models["cpu"].set_params(device="cpu")
        gap = np.abs(there - models["cpu"].predict_proba(x_test)).max()
        print(f"{name:16} the same weights on both: probabilities differ by {gap:.1e} at most")


if __name__ == "__main__":
    main()
