"""What fit and predict take of memory beside X, in a process of their own."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SCRIPT = """
import json, re, sys, warnings
import numpy as np
from pydeq import DEQClassifier

def peak():
    # Of this process's own memory: pages of a mapped file are the system's to take back.
    with open("/proc/self/status") as file:
        return int(re.search(r"RssAnon:\\s+(\\d+)", file.read()).group(1)) / 1024

import threading, time
most, on = 0.0, True
def watch():
    global most
    while on:
        most = max(most, peak())
        time.sleep(0.002)

warnings.simplefilter("ignore")
threading.Thread(target=watch, daemon=True).start()
found = {}
for name in sys.argv[2:]:
    X, y = (np.load(f"{sys.argv[1]}/{name}.{part}.npy", mmap_mode="r") for part in "Xy")
    model = DEQClassifier(
        n_state=16, hidden_layer_sizes=16, max_iter=1, batch_size=1000, random_state=0, engine="jax"
    )
    half = len(X) // 2
    model.fit(X[:half], y[:half]).predict(X)  # what is compiled is no part of it
    found[name] = []
    for call in (lambda: model.predict(X), lambda: model.fit(X, y)):
        before = most = peak()
        call()
        found[name].append(most - before)
print(json.dumps(found))
"""

N_BYTES, N_CLASSES = 20_000, 4_000


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The MiB that predict and fit take at most, by the name of the data."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    data = {
        "bytes": (rng.integers(-100, 100, (N_BYTES, 750), np.int8), np.arange(N_BYTES) % 3),
        "classes": (rng.normal(size=(9_000, 10)), np.arange(9_000) % N_CLASSES),
    }
    for name, (X, y) in data.items():
        np.save(folder / f"{name}.X.npy", X)
        np.save(folder / f"{name}.y.npy", y)
    command = [sys.executable, "-c", SCRIPT, str(folder), *data]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_x_is_not_converted_as_a_whole(measured):
    """15 MB of int8 would be 120 MB in float64."""
    predict, fit = measured["bytes"]
    size = N_BYTES * 750 / 2**20
    assert predict < 0.1 * size + 80
    assert fit < 1.1 * size + 100


def test_many_classes_cost_no_row_of_them_a_sample(measured):
    """9,000 rows of 4,000 classes, one-hot or logits, would be 288 MB."""
    predict, fit = measured["classes"]
    assert predict < 260
    assert fit < 260  # a batch of 1,000 takes up to 190
