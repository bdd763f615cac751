"""Several processes and several devices: the same weights as one, and none waits for the dead."""

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
import json, os, sys
task = json.loads(sys.argv[1])
import jax
if task["size"] > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"127.0.0.1:{task['port']}", task["size"], task["rank"], heartbeat_timeout_seconds=10
    )
import numpy as np
from pydeq import Checkpoint, DEQClassifier, DEQRegressor
rank, size = task["rank"], task["size"]
X, y = np.load(task["folder"] + "/X.npy", mmap_mode="r"), np.load(task["folder"] + "/y.npy")
if task["rows"] == "own":
    X, y = np.array(X[rank::size]), y[rank::size]
if task.get("spoiled") == rank:
    X = np.array(X)
    X[3] = np.nan
cls = {"classifier": DEQClassifier, "regressor": DEQRegressor}[task["kind"]]
model = cls(n_state=6, hidden_layer_sizes=8, batch_size=30, max_iter=3, engine="jax",
            random_state=0, tol=0.0)
model.set_params(**task.get("changes", {}))
if task.get("changes_of", rank + 1) == rank:
    model.set_params(alpha=0.5)
how = Checkpoint(task["folder"] + "/kept", every_epochs=1) if task.get("kept") else None
try:
    model.fit(X, y, checkpoint=how)
except ValueError as error:
    print("ValueError:", error, flush=True)
else:
    np.savez(task["folder"] + f"/{task['out']}{rank}.npz", loss=model.loss_curve_,
             **model.params_, **{n: getattr(model, n) for n in ("target_mean_", "classes_")
                                 if hasattr(model, n)})
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(folder, size, devices=1, **task):
    """Start the processes of a fit."""
    # pydeq keeps no programs of several processes; JAX's own cache does.
    flags = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(Path(os.environ["PYDEQ_CACHE_DIR"]) / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    port, processes = free_port(), []
    for rank in range(size):
        given = {"folder": str(folder), "rank": rank, "size": size, "port": port, **task}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, json.dumps(given)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, **flags},
            )
        )
    return processes


def finish(processes):
    """Return what each process said, and its exit code."""
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return said, [process.returncode for process in processes]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 5))
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", (X[:, 0] * X[:, 1] > 0).astype(int))
    return tmp_path


def fit(folder, size, out, devices=1, **task):
    task = {"kind": "classifier", "rows": "common", "out": out, **task}
    said, codes = finish(start(folder, size, devices, **task))
    assert codes == [0] * size, said
    return [dict(np.load(folder / f"{out}{rank}.npz")) for rank in range(size)]


def error(found, expected):
    return max(np.abs(found[n] - v).max() / np.abs(v).max() for n, v in expected.items() if v.any())


def fit_here(folder, cls, **changes):
    """Return what this process alone learns of the same task."""
    X, y = np.load(folder / "X.npy"), np.load(folder / "y.npy")
    given = {"n_state": 6, "hidden_layer_sizes": 8, "batch_size": 30, "max_iter": 3, "tol": 0.0}
    model = cls(**{**given, "engine": "jax", "random_state": 0, **changes}).fit(X, y)
    names = [n for n in ("target_mean_", "classes_") if hasattr(model, n)]
    return {"loss": np.array(model.loss_curve_), **model.params_} | {
        name: getattr(model, name) for name in names
    }


@pytest.mark.parametrize("cls", [DEQClassifier, DEQRegressor])
def test_two_processes_and_two_devices_learn_what_one_does(cls, folder):
    kind = "classifier" if cls is DEQClassifier else "regressor"
    changes = {"early_stopping": True, "validation_fraction": 0.2}
    one = fit_here(folder, cls, **changes)
    (devices,) = fit(folder, 1, "devices", devices=2, kind=kind, changes=changes)
    both = fit(folder, 2, "both", kind=kind, changes=changes)
    assert error(devices, one) < 1e-11
    assert error(both[0], one) < 1e-11
    assert all(np.array_equal(both[1][name], value) for name, value in both[0].items())


def test_each_process_may_have_rows_of_its_own(folder):
    """With one batch an epoch, in any order, the steps are those of one process."""
    y = np.load(folder / "y.npy").astype(float)
    y[::2] += 10.0  # the first process has other values, and another mean
    np.save(folder / "y.npy", y)
    task = {"kind": "regressor", "changes": {"batch_size": 200}}
    one = fit_here(folder, DEQRegressor, **task["changes"])
    own = fit(folder, 2, "own", rows="own", **task)
    assert error(own[0], one) < 1e-11
    assert all(np.array_equal(own[1][name], value) for name, value in own[0].items())


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"spoiled": 1, "rows": "own"}, "Input X contains NaN"),
        ({"changes_of": 1}, "processes of a fit need the same alpha"),
    ],
)
def test_what_one_process_refuses_all_refuse(task, said, folder):
    task = {"kind": "classifier", "rows": "common", "out": "none", **task}
    texts, codes = finish(start(folder, 2, **task))
    assert codes == [0, 0]
    assert all(said in text for text in texts)


def test_a_process_that_dies_ends_the_others_and_the_checkpoint_is_gone_on_from(folder):
    task = {"kind": "classifier", "rows": "common", "kept": True}
    task["changes"] = {"max_iter": 100, "n_iter_no_change": 100}
    unbroken = fit(folder, 2, "unbroken", **{**task, "kept": False})
    processes = start(folder, 2, out="never", **task)
    for _ in range(3000):
        if len(list((folder / "kept").glob("epoch-*[1-9].*"))) > 0:
            break
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    said, codes = finish(processes)
    assert time.monotonic() - killed < 60
    assert codes[0] != 0
    assert "another task died" in said[0] or "one of them has ended" in said[0]
    assert not (folder / "never0.npz").exists()
    again = fit(folder, 2, "again", **task)
    assert all(np.array_equal(again[0][name], value) for name, value in unbroken[0].items())
