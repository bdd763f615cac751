"""How good models of other architectures are on MNIST, and what is known of their answers.

    python tests/benchmarks/architectures.py --data FOLDER
    python tests/benchmarks/architectures.py --data FOLDER --model monotone --checkpoint FOLDER

Trains on all 60,000 images and prints each epoch, then what the 10,000 test images come to: the
accuracy, how many equilibria were found, and of how many the distance to the one equilibrium is
bounded. `mnist_multiscale` sees the images moved by up to two pixels, anew in each epoch, and its
rate falls from 2e-3 to 0 along half a cosine. With --checkpoint a run that was cut off goes on, and
one that has ended is only looked at again. The exit code is 1 if a bar is missed.
"""

import math
import sys
import time
from pathlib import Path

import click
import numpy as np

from pydeq import Checkpoint, DEQClassifier, load, presets
from pydeq.datasets import load_mnist, shifted
from pydeq.model.certificate import distance_bound

MODELS = {
    "mnist_conv": (presets.mnist_conv, 0.992),
    "mnist_multiscale": (presets.mnist_multiscale, 0.994),
    "monotone": (
        lambda **settings: DEQClassifier(
            n_state=256,
            hidden_layer_sizes=(),
            stability="monotone",
            **{"alpha": 0.06, "max_iter": 30, "random_state": 0, **settings},
        ),
        0.984,
    ),
}
"""How each is made, and the least accuracy asked of it."""


def fitted(model, x, y, checkpoint):
    """Fit a model."""
    how = None if checkpoint is None else Checkpoint(checkpoint, every_epochs=1)
    return model.fit(x, y, checkpoint=how)


def fitted_to_shifted(model, x, y, checkpoint, rate=2e-3):
    """Fit a model to images that are moved anew in each epoch, at a rate that falls."""
    path = None if checkpoint is None else checkpoint / "model.safetensors"
    n_epochs = model.max_iter
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        model = load(path) if path.exists() else model
    for epoch in range(len(getattr(model, "history_", ())), n_epochs):
        now = rate * (1 + math.cos(math.pi * epoch / n_epochs)) / 2
        model.set_params(learning_rate_init=now)
        model.partial_fit(shifted(x, model.input_shape, 2, epoch), y, classes=np.arange(10))
        if path is not None:
            model.save(path)
    return model


def answers(model, x, y):
    """Return accuracy, and whether all answers converged and have a bound of their distance."""
    start = time.process_time()
    found = model.equilibrium(x)
    accuracy = np.mean(model.classes_[found.output.argmax(axis=1)] == y)
    bound = distance_bound(model.model_spec_, model.params_, x, found.state)
    print(
        f"test accuracy {accuracy:.4f}; {found.converged.sum()} of {len(y)} converged, the "
        f"distance of {np.isfinite(bound).sum()} is bounded; {found.n_evals.mean():.1f} "
        f"evaluations a sample; largest bound {bound.max():.2g}, of states of length "
        f"{np.linalg.norm(found.state, axis=1).mean():.2g}; {time.process_time() - start:.0f} s "
        "of CPU"
    )
    return accuracy, bool((found.converged & np.isfinite(bound)).all())


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of MNIST.")
@click.option("--model", "name", type=click.Choice(list(MODELS)), default="mnist_conv")
@click.option("--max-iter", type=int, help="Epochs, instead of the model's own number.")
@click.option("--engine", type=click.Choice(["jax", "julia"]), default="jax")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A folder to go on from.")
def main(data, name, max_iter, engine, checkpoint):
    """Fit one model, and say how good it is."""
    x, y, x_test, y_test = load_mnist(data)
    make, least = MODELS[name]
    settings = {} if max_iter is None else {"max_iter": max_iter}
    fit = fitted_to_shifted if name == "mnist_multiscale" else fitted
    start = time.process_time()
    model = fit(make(engine=engine, **settings), x, y, checkpoint)
    for number, epoch in enumerate(model.history_, 1):
        print(
            f"epoch {number:3}: loss {epoch.loss:.5f}, {epoch.n_evals:.1f} evaluations a sample, "
            f"{epoch.n_failed} failed, {epoch.seconds:.0f} s"
        )
    print(f"{time.process_time() - start:.0f} s of CPU in this run", flush=True)
    accuracy, is_certified = answers(model, x_test, y_test)
    print(f"{name}: at least {least} asked, and every answer converged and its distance bounded")
    sys.exit(0 if accuracy >= least and is_certified else 1)


if __name__ == "__main__":
    main()
