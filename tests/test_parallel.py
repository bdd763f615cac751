"""Several processes and several devices: the same weights as one, and none waits for the dead.

Processes take seconds to start, so a set of them does many tasks, one after the other.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pydeq import DEQClassifier, DEQRegressor

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
    model = getattr(pydeq, task["kind"])(**task["given"])
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

GIVEN = {
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
    "values": {"kind": "DEQRegressor", "target": "values", "given": HELD_OUT},
}
OF_TWO = {
    **TASKS,
    # With one batch an epoch, in any order, the steps are those of one process.
    "own": {"kind": "DEQRegressor", "target": "values", "rows": "own",
            "given": {**GIVEN, "batch_size": 200}},
    "spoiled": {**TASKS["classes"], "rows": "own", "spoiled": 1},
    "disagreed": {**TASKS["classes"], "other_alpha": 1},
    "julia": {**TASKS["classes"], "engine": "julia"},
}  # fmt: skip
# Sixty epochs of ReLU make more of a rounding than a comparison with one process can take.
LONG = {**GIVEN, "activation": "tanh", "max_iter": 60, "n_iter_no_change": 60}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(folder, size, tasks, devices=1):
    """Start so many processes, each of which does all tasks."""
    # pydeq keeps no programs of several processes; JAX's own cache does.
    flags = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
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


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder that two processes wrote to, and what they said."""
    folder = tmp_path_factory.mktemp("two")
    write_data(folder)
    said, codes = finish(start(folder, 2, OF_TWO))
    assert codes == [0, 0], said
    return folder, said


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    """The folder that a process with two devices wrote to."""
    folder = tmp_path_factory.mktemp("devices")
    write_data(folder)
    said, codes = finish(start(folder, 1, TASKS, devices=2))
    assert codes == [0], said
    return folder


def alone(folder, task):
    """Return what this process learns."""
    cls = {"DEQClassifier": DEQClassifier, "DEQRegressor": DEQRegressor}[task["kind"]]
    X, y = np.load(folder / "X.npy"), np.load(folder / f"{task['target']}.npy")
    model = cls(**task["given"]).fit(X, y)
    names = [name for name in ("target_mean_", "classes_") if hasattr(model, name)]
    also = {name: getattr(model, name) for name in names}
    return {"loss": np.array(model.loss_curve_), **model.params_, **also}


def learned(folder, name, size, rank):
    return dict(np.load(folder / f"{name}-{size}-{rank}.npz"))


def error(found, expected):
    return max(np.abs(found[n] - v).max() / np.abs(v).max() for n, v in expected.items() if v.any())


@pytest.mark.parametrize("name", ["classes", "values", "own"])
def test_two_processes_learn_what_one_does(name, two):
    folder, _ = two
    first, second = (learned(folder, name, 2, rank) for rank in (0, 1))
    assert error(first, alone(folder, OF_TWO[name])) < 1e-11
    assert all(np.array_equal(second[key], value) for key, value in first.items())


@pytest.mark.parametrize("name", TASKS)
def test_two_devices_learn_what_one_does(name, devices):
    found = learned(devices, name, 1, 0)
    assert error(found, alone(devices, TASKS[name])) < 1e-11


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("spoiled", "Input X contains NaN"),
        ("disagreed", "processes of a fit need the same alpha"),
        ("julia", "engine='julia' trains in one process"),
    ],
)
def test_what_one_process_refuses_all_refuse(name, text, two):
    _, said = two
    for of_one in said:
        assert text in next(line for line in of_one.splitlines() if line.startswith(f"{name}:"))


def test_a_process_that_dies_ends_the_others_and_the_checkpoint_is_gone_on_from(tmp_path):
    write_data(tmp_path)
    task = {**TASKS["classes"], "given": LONG, "kept": True}
    processes = start(tmp_path, 2, {"long": task})
    for _ in range(3000):
        if len(list((tmp_path / "kept").glob("epoch-*[1-9].*"))) > 0:
            break
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    said, codes = finish(processes)
    assert time.monotonic() - killed < 60
    assert codes[0] != 0
    assert "another task died" in said[0] or "one of them has ended" in said[0]
    assert not (tmp_path / "long-2-0.npz").exists()
    said, codes = finish(start(tmp_path, 2, {"long": task}))
    assert codes == [0, 0], said
    assert error(learned(tmp_path, "long", 2, 0), alone(tmp_path, task)) < 1e-11
