"""Where an epoch of pydeq's JAX engine goes, program by program.

    python tests/benchmarks/epoch_profile.py                    # both models, about a minute
    python tests/benchmarks/epoch_profile.py blog --data DIR    # the 784-100-500-100-10 cell

Each program of a batch is waited for and timed, in CPU and wall seconds; medians over an epoch that
follows one of training. Training itself does not wait, and then takes a little less than the sum.

(Not called profile.py: the standard library's cProfile would import it.)
"""

import os
import statistics
import time
from collections import defaultdict
from pathlib import Path

import click
import jax

from pydeq import DEQClassifier
from pydeq.datasets import load_mnist
from pydeq.engines.jax import compiled

HERE = Path(__file__).resolve().parent
PROGRAMS = "act", "search", "step"
N_SAMPLES = 20_000

MODELS = {
    "blog": {
        "n_state": 100,
        "hidden_layer_sizes": (500,),
        "activation": "tanh",
        "learning_rate_init": 1e-3,
        "alpha": 0.0,
        "batch_size": 128,
    },
    "default": {},
}


def listen(name, seconds):
    """Put in the place of a program one that waits and notes its seconds."""
    program = getattr(compiled, name)

    def timed(*args):
        cpu, wall = time.process_time(), time.perf_counter()
        result = jax.block_until_ready(program(*args))
        seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
        return result

    setattr(compiled, name, timed)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(MODELS)))
@click.option("--data", default=os.environ.get("PYDEQ_DATA", str(HERE.parents[1] / "data")))
def main(names, data):
    X, y, *_ = load_mnist(data)
    seconds = defaultdict(list)
    for name in PROGRAMS:
        listen(name, seconds)
    for name in names or MODELS:
        model = DEQClassifier(engine="jax", max_iter=1, random_state=0, **MODELS[name])
        model.partial_fit(X[:N_SAMPLES], y[:N_SAMPLES], classes=range(10))
        seconds.clear()
        model.partial_fit(X[:N_SAMPLES], y[:N_SAMPLES])
        print(f"{name}: {len(seconds['step'])} batches, milliseconds a batch")
        for program in PROGRAMS:
            cpu, wall = (1e3 * statistics.median(s) for s in zip(*seconds[program], strict=True))
            print(f"  {program:<8} CPU {cpu:6.2f}  wall {wall:6.2f}")


if __name__ == "__main__":
    main()
