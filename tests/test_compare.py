"""`pydeq compare`: the same start for everyone, the numbers of the table, the file format."""

import dataclasses
import re
import subprocess
import types
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import assert_params_equal, assert_params_near

import pydeq.compare.task
from pydeq import compare, presets
from pydeq.cli.compare import compare as compare_command
from pydeq.compare import original
from pydeq.compare.original import read_transposed, run_original, write_transposed
from pydeq.datasets import load_digits
from pydeq.engines.julia.environment import JuliaEnvironment
from pydeq.errors import EngineError


@pytest.fixture
def digits(monkeypatch):
    """Stand in for MNIST: scikit-learn's digits, 300 to train on."""
    X, y, X_test, y_test = load_digits()
    small = X[:300], y[:300], X_test[:100], y_test[:100]
    monkeypatch.setattr(pydeq.compare.task.datasets, "load_mnist", lambda root: small)


def tight_mnist(**changes):
    return compare.mnist_task(".", abstol=1e-3, reltol=1e-3, **changes)


def test_double_starts_and_trains_as_the_preset_does():
    task = compare.double_task(n_epochs=5)
    outcome = compare.run_engine(task, "jax")
    model = presets.double(engine="jax", max_iter=5).fit(*presets.double_data())
    assert_params_equal(outcome.params, model.params_)
    np.testing.assert_array_equal(outcome.loss, model.loss_curve_)


def test_mnist_starts_and_trains_as_the_preset_does(digits):
    # With the penalty, whose probes are drawn too.
    outcome = compare.run_engine(tight_mnist(stability="jacobian"), "jax")
    X, y, _, _ = pydeq.compare.task.datasets.load_mnist(".")
    settings = {"stability": "jacobian", "abstol": 1e-3, "reltol": 1e-3}
    model = presets.mnist(engine="jax", **settings).fit(X, y)
    assert_params_near(outcome.params, model.params_, 1e-5)


def test_batches_make_up_the_epochs(digits):
    task = tight_mnist(n_epochs=2)
    assert task.batch_sizes.tolist() == [128, 128, 44] * 2
    assert all(sorted(order) == list(range(300)) for order in task.orders)
    double = compare.double_task(n_epochs=3)
    assert [list(order) for order in double.orders] == [list(range(10))] * 3


def outcome(task, program, **changes):
    n = len(task.batch_sizes)
    values = {
        "loss": np.full(n, 2.0),
        "n_evals": np.arange(1.0, n + 1),
        "worst_residual": np.full(n, 1e-3),
        "n_failed": np.ones(n, int),
        "first_seconds": 0.5,
        "other_seconds": 1.0,
        "test_seconds": 1.0,
        "params": task.params,
        "output": 2.0 * task.x_test,
        "n_test_failed": 4,
    }
    return compare.Outcome(program, **{**values, **changes})


def test_table_has_a_column_for_each_program():
    task = compare.double_task(n_epochs=3)
    first = outcome(task, "jax")
    params = {name: 1.1 * value for name, value in task.params.items()}
    other = outcome(task, "julia", params=params, worst_residual=None, n_test_failed=None)
    lines = list(compare.table(task, [first, other]))
    rows = {line[:28].strip(): line[28:].split() for line in lines}
    assert rows[""] == ["jax", "julia"]
    assert rows["loss, last epoch"] == ["2", "2"]
    assert rows["prediction for -5"] == ["-10.0000", "-10.0000"]
    assert rows["evaluations, last epoch"] == ["3.0", "3.0"]
    assert rows["worst residual, last batch"] == ["1.0e-03", "-"]
    assert rows["failed of 30 solves"] == ["3", "3"]
    assert rows["failed of 21 in the test"] == ["4", "-"]
    assert rows["seconds, all others"] == ["1.0", "1.0"]
    assert rows["weights"] == ["1.0e-01"]
    assert rows["predictions"] == rows["loss curve"] == ["0.0e+00"]


def test_means_over_an_epoch_are_by_the_sample(digits):
    task = tight_mnist(n_epochs=2)
    loss = np.array([9.0, 9.0, 9.0, 1.0, 2.0, 4.0])
    found = outcome(task, "jax", loss=loss, output=np.zeros((100, 10)))
    lines = list(compare.table(task, [found]))
    expected = (128 * 1.0 + 128 * 2.0 + 44 * 4.0) / 300
    assert lines[1].split()[-1] == f"{expected:.5g}"
    loss[4] = np.nan  # a batch without a step
    lines = list(compare.table(task, [found]))
    assert lines[1].split()[-1] == f"{(128 * 1.0 + 44 * 4.0) / 172:.5g}"


# --- the command ---


def test_command(tmp_path, monkeypatch):
    # No Julia here, whatever there is.
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", "none")
    result = CliRunner().invoke(
        compare_command,
        ["--preset", "double", "--epochs", "3", "--original", "--out", str(tmp_path)],
    )
    assert result.exit_code == 0, result.output
    for program in ("julia", "original"):
        assert re.search(
            rf"^{program} is left out: .*PYTHON_JULIACALL_EXE", result.stderr, re.MULTILINE
        )
    assert "prediction for -5" in result.stdout
    assert (tmp_path / "compare-double.png").stat().st_size > 10_000


def test_command_for_mnist(tmp_path, digits):
    args = ["--preset", "mnist", "--engine", "jax", "--tol", "1e-3", "--samples", "200"]
    result = CliRunner().invoke(
        compare_command, [*args, "--no-train-encoder", "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    assert "test accuracy" in result.stdout
    assert "failed of 200 solves" in result.stdout


def test_command_fails_where_nothing_is_usable(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", "none")
    args = ["--preset", "double", "--engine", "julia", "--out", str(tmp_path)]
    result = CliRunner().invoke(compare_command, args)
    assert result.exit_code == 1
    assert "Nothing that was asked for is usable" in result.stderr


def test_command_says_that_the_data_are_missing(tmp_path):
    args = ["--preset", "mnist", "--data", str(tmp_path), "--out", str(tmp_path)]
    result = CliRunner().invoke(compare_command, args)
    assert result.exit_code == 1
    assert "Error: " in result.stderr


# --- the plain Julia programs ---


def test_arrays_come_back_from_a_file(tmp_path):
    arrays = {
        "cell.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "order": np.array([3, 1, 2]),
        "abstol": np.array(1e-3),
        "empty": np.zeros((0, 4)),
        "F": np.asfortranarray(np.arange(6.0).reshape(3, 2)),
    }
    write_transposed(tmp_path / "a", arrays)
    with np.load(tmp_path / "a") as written:
        assert written["cell.0.weight"].shape == (3, 2)
        assert written["cell.0.weight"].flags.f_contiguous
    found = read_transposed(tmp_path / "a")
    assert_params_equal(found, arrays)
    assert all(found[name].dtype == value.dtype for name, value in arrays.items())


@pytest.fixture
def fake_julia(monkeypatch):
    """A Julia that runs what `program(given)` says instead of the program."""
    monkeypatch.setattr(original, "find_julia", lambda: JuliaEnvironment("julia", "/p", ""))
    calls = types.SimpleNamespace(program=None, command=None, given=None)

    def run(command, env, **_):
        calls.command, calls.env = command, env
        calls.given = read_transposed(Path(command[-2]))
        found = calls.program(calls.given)
        if isinstance(found, str):
            return subprocess.CompletedProcess(command, 1, stderr=found)
        write_transposed(Path(command[-1]), found)
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(original.subprocess, "run", run)
    return calls


def test_the_original_of_double_is_given_all_it_needs(fake_julia):
    task = compare.double_task(n_epochs=4)

    def program(given):
        return {
            **{name: given[name] + 1 for name in task.params},
            "loss": np.arange(4.0),
            "n_evals": np.array([10, 20, 30, 40]),
            "failed": np.array([0, 1, 0, 0]),
            "output": 2 * given["x_test"],
            "seconds": np.array([5.0, 3.0, 0.5]),
        }

    fake_julia.program = program
    found = run_original(task)
    given = fake_julia.given
    assert given["n_steps"] == 4
    assert (given["abstol"], given["learning_rate"]) == (1e-2, 0.05)
    np.testing.assert_array_equal(given["target"], 2 * given["x"])
    assert fake_julia.command[:2] == ["julia", "--project=/p"]
    assert fake_julia.command[3].endswith("double.jl")
    assert "@stdlib" in fake_julia.env["JULIA_LOAD_PATH"]
    np.testing.assert_array_equal(found.loss, np.arange(4.0) / 10)  # the mean, of a sum
    np.testing.assert_array_equal(found.n_failed, [0, 10, 0, 0])
    assert (found.first_seconds, found.other_seconds, found.test_seconds) == (5, 3, 0.5)
    assert_params_near(found.params, {n: v + 1 for n, v in task.params.items()}, 1e-12)
    rows = "\n".join(compare.table(task, [found]))
    assert re.search(r"prediction for -5 +-10.0000", rows)


def test_the_original_of_mnist_counts_by_the_batch(fake_julia, digits):
    task = tight_mnist(train_encoder=False)

    def program(given):
        return {
            **{name: given[name] for name in task.params},
            "loss": np.array([3.0, 2.0, 1.0]),
            "n_evals": np.array([10, 20, 30]),
            "failed": np.array([0, 0, 1]),
            "output": np.zeros((100, 10), np.float32),
            "failed_test": np.array([1]),
            "seconds": np.array([5.0, 3.0, 0.5]),
        }

    fake_julia.program = program
    found = run_original(task)
    assert fake_julia.given["train_encoder"] == 0
    assert fake_julia.given["x"].dtype == np.float32
    np.testing.assert_array_equal(fake_julia.given["order"], task.orders[0])
    np.testing.assert_array_equal(found.loss, [3.0, 2.0, 1.0])
    np.testing.assert_array_equal(found.n_failed, [0, 0, 44])
    assert found.n_test_failed == 100


def test_an_original_that_fails_is_quoted(fake_julia):
    fake_julia.program = lambda given: "ERROR: LoadError: no such thing\nStacktrace: ..."
    with pytest.raises(EngineError, match=r"double.jl failed:\nERROR: LoadError: no such thing"):
        run_original(compare.double_task(n_epochs=4))


def in_float64(task):
    """Return the task in float64, in which rounding does not end a tight search."""
    arrays = {"x": task.data.x.astype(float), "weight": task.data.weight.astype(float)}
    if task.data.target.dtype.kind == "f":
        arrays["target"] = task.data.target.astype(float)
    params = {name: value.astype(float) for name, value in task.params.items()}
    return dataclasses.replace(task, params=params, data=dataclasses.replace(task.data, **arrays))


@pytest.mark.julia
@pytest.mark.parametrize("preset", ["double", "mnist"])
def test_jax_julia_and_the_original_agree(digits, preset):
    # What a search leaves is the error of its state: at 1e-6 in float32 the losses of `double`
    # part by 1e-3 in 20 epochs, on the slope of Adam's overshoot, where they are small.
    if preset == "double":
        task = in_float64(compare.double_task(n_epochs=20, abstol=1e-10, reltol=1e-10))
    else:  # more tightly, the plain program's ODE does not come to rest in its 1000 steps
        task = in_float64(compare.mnist_task(".", abstol=1e-5, reltol=1e-5))
    outcomes = [compare.run_engine(task, name) for name in ("jax", "julia")]
    outcomes.append(run_original(task))
    for found in outcomes[1:]:
        np.testing.assert_allclose(
            found.loss, outcomes[0].loss, rtol=1e-6 if preset == "double" else 1e-5
        )
        assert not found.n_failed.any()
