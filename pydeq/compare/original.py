"""The blog posts' programs in plain Julia, as one more column beside the engines.

They are ``julia/original/*.jl``, use nothing of pydeq, and run in a process of their own. Weights,
data and the order of the batches go to them, and their results come back, in NPZ files.
"""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pydeq.compare.outcome import Outcome
from pydeq.compare.task import Task
from pydeq.engines.julia import bundled_project, check_ends, find_julia
from pydeq.errors import EngineError, EngineUnavailableError

__all__ = ["read_transposed", "run_original", "write_transposed"]


def run_original(task: Task) -> Outcome:
    """Train and test with the plain Julia program of the task's preset.

    It counts by the batch: a batch whose search failed counts as failed with all its samples, and
    takes its step all the same.

    Raises
    ------
    EngineUnavailableError
        If there is no Julia, or it does not answer.
    EngineError
        If the program fails; the message ends with what it printed.
    """
    julia = find_julia()
    if not julia.ready:
        raise EngineUnavailableError(f"{julia.problem}. What to do: {julia.advice}")
    check_ends([str(julia.executable)])
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "given.npz", Path(folder) / "result.npz"
        write_transposed(given, _given(task))
        # The program's packages are those of the bundled project, in the active one's versions.
        load_path = os.pathsep.join(["@", str(bundled_project()), "@stdlib"])
        script = bundled_project() / "original" / f"{task.preset}.jl"
        command = [julia.executable, f"--project={julia.project}", "--startup-file=no"]
        process = subprocess.run(
            [*map(str, command), str(script), str(given), str(result)],
            env={**os.environ, "JULIA_LOAD_PATH": load_path},
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if process.returncode:
            tail = "\n".join(process.stderr.strip().splitlines()[:20])
            raise EngineError(f"{script.name} failed:\n{tail}")
        return _outcome(task, read_transposed(result))


def _given(task: Task) -> dict[str, np.ndarray]:
    """Return what the program reads."""
    solver, data = task.solver, task.data
    ode_abstol, ode_reltol = solver.ode_tolerances(task.model)
    target = data.target
    if target.ndim == 1:
        target = np.eye(task.model.n_outputs, dtype=data.x.dtype)[target]
    given = {
        **task.params,
        "x": data.x,
        "target": target,
        "x_test": np.asarray(task.x_test, data.x.dtype),
        "learning_rate": np.float64(task.optimizer.learning_rate),
        "abstol": np.float64(solver.abstol),
        "reltol": np.float64(solver.reltol),
        "ode_abstol": np.float64(ode_abstol),
        "ode_reltol": np.float64(ode_reltol),
        "max_steps": np.int64(solver.max_steps),
    }
    if task.preset == "double":
        given["n_steps"] = np.int64(len(task.batch_sizes))
    else:
        given["batch_size"] = np.int64(task.batch_size)
        given["train_encoder"] = np.int64(task.optimizer.train_encoder)
        given["order"] = np.concatenate(task.orders)
    return {name: np.asarray(value) for name, value in given.items()}


def _outcome(task: Task, found: dict[str, np.ndarray]) -> Outcome:
    """Return the program's results; what it counts by the batch becomes counts of samples."""
    n_test_failed = None
    if "failed_test" in found:
        starts = range(0, len(task.x_test), task.batch_size)
        test_sizes = [min(task.batch_size, len(task.x_test) - start) for start in starts]
        n_test_failed = int(found["failed_test"] @ test_sizes)
    first, others, test = map(float, found["seconds"])
    # The post's loss of `double` is the sum of the squares, pydeq's their mean.
    divisor = len(task.data) if task.preset == "double" else 1
    return Outcome(
        program="original",
        loss=found["loss"] / divisor,
        n_evals=found["n_evals"].astype(float),
        worst_residual=None,
        n_failed=found["failed"].astype(int) * task.batch_sizes,
        first_seconds=first,
        other_seconds=others,
        test_seconds=test,
        params={name: found[name] for name in task.params},
        output=found["output"],
        n_test_failed=n_test_failed,
    )


def write_transposed(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an NPZ file of the arrays as Julia has them, axes reversed and in column order.

    NPZ.jl reads these bytes as they are: a C-order ``(n, f)`` array is ``(f, n)`` there.
    """
    with path.open("wb") as file:
        transposed: dict[str, Any] = {k: np.ascontiguousarray(a).T for k, a in arrays.items()}
        np.savez(file, **transposed)


def read_transposed(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_transposed`, or NPZ.jl in Julia, wrote."""
    with np.load(path) as found:
        return {name: np.ascontiguousarray(found[name].T) for name in found.files}
