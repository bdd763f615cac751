"""How far rounding takes training: 1, 2 and 4 devices, and a start moved by one rounding.

python tests/benchmarks/rounding.py --data data --out rounding.json    (MNIST, 3 epochs)

Devices of one process do what processes do: each solves its share of every batch, and the shares
are added. What one rounding does is the measure of what another order of a sum may do.
"""

import json
import os
import sys
from pathlib import Path

import click
import numpy as np

STEPS = (1, 10, 100, 300, 900)
BATCH = 200
CASES = {
    "float32": {
        "two devices": (2, {}),
        "four devices": (4, {}),
        "one rounding": (1, {"moved": True}),
        "two devices, reltol 1e-6": (2, {"reltol": 1e-6}),
        "two devices, tanh": (2, {"activation": "tanh"}),
    },
    "float64": {
        "two devices": (2, {}),
        "four devices": (4, {}),
        "one rounding": (1, {"moved": True}),
    },
}


@click.command()
@click.option("--data", type=click.Path(), default="data", help="Folder of the MNIST files.")
@click.option("--steps", default=",".join(map(str, STEPS)))
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(data, steps, out):
    """Compare weights after so many steps; writes a JSON file."""
    if "jax" in sys.modules:
        raise click.ClickException("JAX is to be told how many devices there are first.")
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    found = []
    for dtype, cases in CASES.items():
        x, target = digits(data, dtype)
        for n_steps in map(int, steps.split(",")):
            alone = {}
            for name, (n_devices, changes) in cases.items():
                plain = {k: v for k, v in changes.items() if k != "moved"}
                key = json.dumps(plain)
                if key not in alone:
                    alone[key] = trained(x, target, n_steps, 1, **plain)
                weights, evals = trained(x, target, n_steps, n_devices, **changes)
                expected, evals_alone = alone[key]
                what = {"dtype": dtype, "case": name, "steps": n_steps}
                other = {"first_other_evaluations": first_other(evals, evals_alone)}
                found.append(what | differences(weights, expected) | other)
                click.echo(json.dumps(found[-1]))
    out.write_text(json.dumps(found, indent=1))


def digits(folder, dtype):
    from pydeq import datasets

    X, y, _, _ = datasets.load_mnist(folder)
    return np.ascontiguousarray(X, dtype), y.astype(np.int64)


def trained(x, target, n_steps, n_devices, moved=False, **changes):
    """Return the weights after so many steps of the classifier's defaults, and evaluations."""
    import jax

    from pydeq import DEQClassifier
    from pydeq.engines.jax.parallel import ParallelSession
    from pydeq.engines.jax.session import JaxSession
    from pydeq.estimators import parameters
    from pydeq.training import start_fit

    given = DEQClassifier(**changes).get_params(deep=False)
    specs = parameters.fit_specs(given, "log_loss", len(x), x.shape[1], 10)
    params, _, rng, _ = start_fit(specs.model, 0, x.dtype)
    if moved:
        weight = params["decoder.weight"]
        weight[0, 0] = np.nextafter(weight[0, 0], x.dtype.type(2))
    devices = jax.devices()[:n_devices]
    given = specs.model, specs.solver, specs.optimizer, params, None
    session = JaxSession(devices[0], *given) if n_devices == 1 else ParallelSession(devices, *given)
    weight = np.ones(len(x), x.dtype)
    session.load_data(x, target, weight)
    evals = []
    while n_steps > 0:
        order = rng.permutation(len(x))[: n_steps * BATCH]
        session.train_epoch(order, BATCH, lambda report: evals.append(report.n_evals))
        n_steps -= -(-len(order) // BATCH)
    return session.params(), evals


def differences(found, expected):
    """Return the largest difference, by the largest weight of its array, and that of the norms."""
    largest = max(float(np.abs(found[n] - v).max() / np.abs(v).max()) for n, v in expected.items())
    squares = sum(float(((found[n] - v).astype("f8") ** 2).sum()) for n, v in expected.items())
    size = sum(float((v.astype("f8") ** 2).sum()) for v in expected.values())
    return {"largest": largest, "norm": (squares / size) ** 0.5}


def first_other(found, expected):
    """Return the first step, from 1, in which a sample took other evaluations; None: none did."""
    pairs = enumerate(zip(found, expected, strict=True), 1)
    return next((step for step, (a, b) in pairs if a != b), None)


if __name__ == "__main__":
    main()
