"""What the tests of several processes share: a script that each of them runs, and its data.

Processes take seconds to start, so a set of them does many tasks, one after the other.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

from pydeq import DEQClassifier, DEQRegressor, layers

SCRIPT = """
import json, sys
rank, size, port, folder, tasks = json.loads(sys.argv[1])
import jax
if size > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", size, rank, heartbeat_timeout_seconds=4)
import numpy as np
import pydeq

def fit(task):
    X, y = np.load(folder + "/X.npy", mmap_mode="r"), np.load(folder + f"/{task['target']}.npy")
    if task.get("rows") == "own":
        X, y = np.array(X[rank::size]), y[rank::size]
    if task.get("spoiled") == rank:
        X = np.array(X)
        X[3] = np.nan
    layers = {part: [getattr(pydeq.layers, kind)(*args) for kind, *args in listed]
              for part, listed in task.get("layers", {}).items()}
    model = getattr(pydeq, task["kind"])(**task["given"], **layers)
    if task.get("other_alpha") == rank:
        model.set_params(alpha=0.5)
    if task.get("engine") is not None:
        model.set_params(engine=task["engine"])
    kept = pydeq.Checkpoint(folder + "/kept", every_epochs=1) if task.get("kept") else None
    model.fit(X, y, checkpoint=kept)
    learned = ("target_mean_", "classes_")
    return {"loss": model.loss_curve_, **model.params_,
            **{name: getattr(model, name) for name in learned if hasattr(model, name)}}

for name, task in tasks.items():
    try:
        np.savez(folder + f"/{name}-{size}-{rank}.npz", **fit(task))
    except (ValueError, pydeq.EngineUnavailableError) as error:
        print(f"{name}: {type(error).__name__}: {error}", flush=True)
"""

# With ReLU a rounding may cost a search a step, which a comparison to 1e-11 does not forgive.
GIVEN = {
    "activation": "tanh",
    "n_state": 6,
    "hidden_layer_sizes": 8,
    "batch_size": 30,
    "max_iter": 3,
    "engine": "jax",
    "random_state": 0,
    "tol": 0.0,
}
HELD_OUT = {**GIVEN, "early_stopping": True, "validation_fraction": 0.2}
TASKS = {
    "classes": {"kind": "DEQClassifier", "target": "labels", "given": HELD_OUT},
    # With layers, and an epoch of a fixed depth.
    "values": {
        "kind": "DEQRegressor",
        "target": "values",
        "given": {**HELD_OUT, "fixed_depth": 2},
        "layers": {
            "cell": [("Dense", 8), ("Activation", "tanh"), ("Dense", 6)],
            "decoder": [("Activation", "tanh"), ("Dense", 1)],
        },
    },
}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(folder, size, tasks, devices=1):
    """Start so many processes, each of which does all tasks."""
    # pydeq keeps no programs of several processes; JAX's own cache does.
    flags = {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(Path(os.environ["PYDEQ_CACHE_DIR"]) / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps([rank, size, port, str(folder), tasks])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **flags},
        )
        for rank in range(size)
    ]


def finish(processes):
    """Return what each process said, and its exit code."""
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return said, [process.returncode for process in processes]


def write_data(folder):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 5))
    values = X[:, 0] * X[:, 1]
    labels = (values > 0).astype(int)
    values[::2] += 10.0  # the first process's own have another mean
    for name, array in {"X": X, "values": values, "labels": labels}.items():
        np.save(folder / f"{name}.npy", array)


def alone(folder, task):
    """Return what this process learns."""
    cls = {"DEQClassifier": DEQClassifier, "DEQRegressor": DEQRegressor}[task["kind"]]
    X, y = np.load(folder / "X.npy"), np.load(folder / f"{task['target']}.npy")
    given = {
        part: [getattr(layers, kind)(*args) for kind, *args in listed]
        for part, listed in task.get("layers", {}).items()
    }
    model = cls(**task["given"], **given).fit(X, y)
    names = [name for name in ("target_mean_", "classes_") if hasattr(model, name)]
    also = {name: getattr(model, name) for name in names}
    return {"loss": np.array(model.loss_curve_), **model.params_, **also}


def learned(folder, name, size, rank):
    return dict(np.load(folder / f"{name}-{size}-{rank}.npz"))


def error(found, expected):
    return max(np.abs(found[n] - v).max() / np.abs(v).max() for n, v in expected.items() if v.any())
