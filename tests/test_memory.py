"""What fit and predict take of memory beside X, in a process of their own."""

import json
import subprocess
import sys

import numpy as np
import pytest

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

path, labels = sys.argv[1:]
X, y = np.load(path, mmap_mode="r"), np.load(labels)
warnings.simplefilter("ignore")
model = DEQClassifier(
    n_state=16, hidden_layer_sizes=16, max_iter=1, batch_size=1000, random_state=0, engine="jax"
)
half = len(X) // 2
model.fit(X[:half], y[:half]).predict(X)  # what is compiled is no part of it
threading.Thread(target=watch, daemon=True).start()
found = []
for call in (lambda: model.predict(X), lambda: model.fit(X, y)):
    before = most = peak()
    call()
    found.append(most - before)
print(json.dumps(found))
"""


def measure(X, y, tmp_path):
    """Return the MiB that predict and fit take at most."""
    files = [str(tmp_path / "X.npy"), str(tmp_path / "y.npy")]
    for file, array in zip(files, (X, y), strict=True):
        np.save(file, array)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *files], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_x_is_not_converted_as_a_whole(tmp_path):
    """15 MB of int8 would be 120 MB in float64."""
    n = 20_000
    X = np.random.default_rng(0).integers(-100, 100, (n, 750), np.int8)
    predict, fit = measure(X, np.arange(n) % 3, tmp_path)
    size = X.nbytes / 2**20
    assert predict < 0.1 * size + 80
    assert fit < 1.1 * size + 100


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_many_classes_cost_no_row_of_them_a_sample(tmp_path):
    """9,000 rows of 4,000 classes, one-hot or logits, would be 288 MB."""
    X = np.random.default_rng(0).normal(size=(9_000, 10))
    predict, fit = measure(X, np.arange(9_000) % 4_000, tmp_path)
    assert predict < 260
    assert fit < 260  # a batch of 1,000 takes up to 190
