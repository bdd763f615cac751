"""How good models of other architectures are on MNIST, and what is known of their answers.

    python tests/benchmarks/architectures.py --data FOLDER
    python tests/benchmarks/architectures.py --data FOLDER --model monotone --checkpoint FOLDER

Trains on all 60,000 images and prints each epoch, then what the 10,000 test images come to: the
accuracy, and how many equilibria were found and are certified. With --checkpoint a run that was
cut off goes on, and one that has ended is only looked at again. The exit code is 1 if a bar is
missed.
"""

import sys
import time
from pathlib import Path

import click
import numpy as np

from pydeq import Checkpoint, DEQClassifier, presets
from pydeq.datasets import load_mnist

MODELS = {
    "mnist_conv": (presets.mnist_conv, 0.992),
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
    """Fit a model, and print its epochs."""
    start = time.process_time()
    how = None if checkpoint is None else Checkpoint(checkpoint, every_epochs=1)
    model.fit(x, y, checkpoint=how)
    for number, epoch in enumerate(model.history_, 1):
        print(
            f"epoch {number:3}: loss {epoch.loss:.5f}, {epoch.n_evals:.1f} evaluations a sample, "
            f"{epoch.n_failed} failed, {epoch.seconds:.0f} s"
        )
    print(f"{time.process_time() - start:.0f} s of CPU in this run", flush=True)
    return model


def answers(model, x, y):
    """Return accuracy, and how many answers converged and are certified."""
    start = time.process_time()
    found = model.equilibrium(x, certify=True)
    seconds = time.process_time() - start
    accuracy = np.mean(model.classes_[found.output.argmax(axis=1)] == y)
    known = found.certificates
    certified = np.isfinite(known.distance_bound) & (known.spectral_abscissa < 0)
    print(
        f"test accuracy {accuracy:.4f}; {found.converged.sum()} of {len(y)} converged, "
        f"{certified.sum()} certified; {found.n_evals.mean():.1f} evaluations a sample; largest "
        f"bound of a distance {known.distance_bound.max():.2g}, of states of length "
        f"{np.linalg.norm(found.state, axis=1).mean():.2g}; {seconds:.0f} s of CPU"
    )
    return accuracy, bool((found.converged & certified).all())


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
    model = fitted(make(engine=engine, **settings), x, y, checkpoint)
    accuracy, is_certified = answers(model, x_test, y_test)
    print(f"{name}: at least {least} asked, and every answer converged and certified")
    sys.exit(0 if accuracy >= least and is_certified else 1)


if __name__ == "__main__":
    main()
