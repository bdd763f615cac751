"""MNIST by this checkout and by another, by turns: epochs, predictions, and the way to 0.97.

    python tests/benchmarks/checkouts.py --beside ../before --data FOLDER

Each measurement is made in a new process, on the JAX engine, without a cache of compiled programs.
Prints seconds: the median epoch of seven on 20,000 images, the median prediction of the 10,000 test
images, and, with compilation and predictions counted, the time to an accuracy of 0.97.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]

WORK = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import numpy as np
from pydeq import DEQClassifier
from pydeq.datasets import load_mnist
case, data = sys.argv[1:]
X, y, X_test, y_test = load_mnist(data)
cell = dict(n_state=100, hidden_layer_sizes=(500,), activation="tanh", batch_size=128)
made = DEQClassifier(**cell if case == "post" else {}, random_state=0, engine="jax", max_iter=8)

def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

def to_097():
    for _ in range(12):
        made.partial_fit(X, y, classes=np.arange(10))
        if made.score(X_test, y_test) >= 0.97:
            return

if case == "to 0.97":
    print(json.dumps({case: seconds(to_097)}))
else:
    made.fit(X[:20_000], y[:20_000])
    made.predict(X_test)
    predictions = [seconds(lambda: made.predict(X_test)) for _ in range(7)]
    epoch = float(np.median(made.history_.seconds[1:]))
    print(json.dumps({"epoch": epoch, "prediction": float(np.median(predictions))}))
"""


def measure(checkout, case, data):
    """Return what a new process measured, by name."""
    run = subprocess.run(
        [sys.executable, "-P", "-c", WORK, case, str(data)],
        env={**os.environ, "PYTHONPATH": str(checkout), "PYDEQ_CACHE_DIR": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


@click.command()
@click.option("--beside", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of MNIST.")
@click.option("--repeats", default=2, show_default=True)
def main(beside, data, repeats):
    """Measure each case in both checkouts."""
    for case in ("default", "post", "to 0.97"):
        for checkout in [ROOT, beside.resolve()] * repeats:
            found = measure(checkout, case, data.resolve())
            cells = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
            click.echo(f"{case:<10}{checkout.name:<12}{cells}")


if __name__ == "__main__":
    main()
