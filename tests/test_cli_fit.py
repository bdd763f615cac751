"""pydeq fit: the model file that it writes is that of the estimator's own fit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import assert_params_equal, assert_params_near

import pydeq
from pydeq.cli.main import main

GIVEN = ["max_iter=3", "n_state=4", "hidden_layer_sizes=[5]", "random_state=0", "engine=jax"]
SAME = {"max_iter": 3, "n_state": 4, "hidden_layer_sizes": (5,), "random_state": 0, "engine": "jax"}
X = np.random.default_rng(0).normal(size=(60, 3))
LABELS, VALUES = np.array(["a", "b"])[np.arange(60) % 2], X[:, 0]


@pytest.fixture
def files(tmp_path):
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "labels.npy", LABELS)
    np.save(tmp_path / "values.npy", VALUES)
    return tmp_path


def options(folder, target="labels.npy"):
    names = {"--data": "X.npy", "--target": target, "--model": "model"}
    return ["fit", *(part for option, name in names.items() for part in (option, folder / name))]


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("target", ["labels", "values"])
def test_it_is_the_estimators_own_fit(target, files):
    result = run(*options(files, f"{target}.npy"), *GIVEN)
    assert result.exit_code == 0, result.output
    cls, y = {
        "labels": (pydeq.DEQClassifier, LABELS),
        "values": (pydeq.DEQRegressor, VALUES),
    }[target]
    found, expected = pydeq.load(files / "model"), cls(**SAME).fit(X, y)
    assert_params_equal(found.params_, expected.params_)
    assert f"{cls.__name__}, 3 epochs, loss {expected.loss_curve_[-1]:.4g}" in result.output


def test_kind_overrides_what_the_target_looks_like(files):
    np.save(files / "labels.npy", (X[:, 0] > 0).astype(float))
    assert run(*options(files), "--kind", "classifier", *GIVEN).exit_code == 0
    assert isinstance(pydeq.load(files / "model"), pydeq.DEQClassifier)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["max_iter"], "'max_iter' must be NAME=VALUE"),
        (["max_iter=0"], "max_iter must be an integer of at least 1"),
        (["depth=3"], "Invalid parameter 'depth'"),
        (["engine=abacus"], "engine must be one of"),
    ],
)
def test_what_cannot_be_used_is_named(given, said, files):
    result = run(*options(files), *given)
    assert result.exit_code != 0
    assert said in result.output
    assert not (files / "model").exists()


def start(*arguments):
    command = [sys.executable, "-m", "pydeq.cli.main", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_processes_write_one_model(files):
    with start(*options(files), "--processes", 2, *GIVEN) as process:
        said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    expected = pydeq.DEQClassifier(**SAME).fit(X, LABELS)
    assert_params_near(pydeq.load(files / "model").params_, expected.params_, 1e-11)


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the processes in /proc")
def test_a_process_that_is_killed_ends_the_command_with_a_word(files):
    kept = files / "kept"
    given = [*GIVEN, "max_iter=100000", "n_iter_no_change=100000"]
    with start(*options(files), "--processes", 2, "--checkpoint", kept, *given) as process:
        for _ in range(2000):
            if kept.exists():
                break
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
        killed = time.monotonic()
        said = process.communicate(timeout=100)[0]
    assert time.monotonic() - killed < 60
    assert process.returncode == 1
    assert "of 2 ended with code -" in said
    assert "With --checkpoint the same command goes on where it was." in said
