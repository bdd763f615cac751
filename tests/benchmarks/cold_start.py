"""A new process to the first prediction of a saved model, and to its first trained epoch, on Julia.

    python tests/benchmarks/cold_start.py
    python tests/benchmarks/cold_start.py --beside ../before --project FOLDER  # another checkout

Prints the medians of the seconds and the CPU seconds from the start of Python. The other checkout
works with the Julia project in FOLDER, whose PyDEQ is its own; the two take turns.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from pydeq import DEQClassifier

ROOT = Path(__file__).resolve().parents[2]
X = np.random.default_rng(0).random((256, 784), "f4")
Y = np.arange(256) % 10

WORK = """
import json, os, sys, time, warnings
warnings.simplefilter("ignore")
start = time.time() - float(sys.argv[2])  # when this process was asked for
began = time.perf_counter()
import numpy as np, pydeq
model = pydeq.load(sys.argv[1]).set_params(engine="julia", max_iter=1)
x = np.random.default_rng(0).random((256, 784), "f4")

def spent():
    return start + time.perf_counter() - began, sum(os.times()[:2])

model.predict(x[:1])
prediction = spent()
model.fit(x, np.arange(256) % 10)
print(json.dumps([*prediction, *spent()]))
"""


def measure(checkout, project, model):
    """Return seconds and CPU seconds to the prediction, then to the epoch."""
    named = {} if project is None else {"PYTHON_JULIAPKG_PROJECT": str(project)}
    run = subprocess.run(
        [sys.executable, "-P", "-c", WORK, str(model), str(time.time())],
        env={**os.environ, **named, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


@click.command()
@click.option("--beside", type=click.Path(exists=True, path_type=Path), help="Another checkout.")
@click.option("--project", type=click.Path(exists=True, path_type=Path), help="Its Julia project.")
@click.option("--repeats", default=3, show_default=True)
def main(beside, project, repeats):
    """Measure a model of MNIST's size, this checkout's and another's by turns."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.safetensors"
        DEQClassifier(max_iter=1, engine="jax").fit(X, Y).save(model)
        cases = {"here": (ROOT, None)} | ({"beside": (beside, project)} if beside else {})
        found = {name: [] for name in cases}
        for _ in range(repeats):
            for name, case in cases.items():
                found[name].append(measure(*case, model))
    for name, rows in found.items():
        row = np.median(rows, axis=0)
        print(
            f"{name:7} prediction {row[0]:5.1f} (CPU {row[1]:5.1f})  "
            f"epoch {row[2]:5.1f} (CPU {row[3]:5.1f})"
        )


if __name__ == "__main__":
    main()
