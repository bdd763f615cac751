"""What a program makes of a task, and the engines as such programs."""

import time
from dataclasses import dataclass

import numpy as np

from pydeq.compare.task import Task
from pydeq.engines import BatchReport, get_engine
from pydeq.model import Params

__all__ = ["Outcome", "run_engine"]


@dataclass(frozen=True)
class Outcome:
    """What one program made of a task.

    Attributes
    ----------
    program : str
    loss, n_evals : ndarray (n_batches,)
        Mean over the samples of each batch.
    worst_residual : ndarray (n_batches,) or None
        None where the program does not tell.
    n_failed : ndarray of int64 (n_batches,)
    first_seconds, other_seconds, test_seconds : float
        The first step, which compiles; the other steps; the test.
    params : Params
    output : ndarray (n_test, n_outputs)
        The raw output for the test samples.
    n_test_failed : int or None
    """

    program: str
    loss: np.ndarray
    n_evals: np.ndarray
    worst_residual: np.ndarray | None
    n_failed: np.ndarray
    first_seconds: float
    other_seconds: float
    test_seconds: float
    params: Params
    output: np.ndarray
    n_test_failed: int | None


def run_engine(task: Task, engine: str, device: str = "auto") -> Outcome:
    """Train and test in one engine.

    The first step is taken for itself, and undone by opening the session anew: so its time is that
    of compiling, whatever an engine does ahead of Python.
    """
    chosen = get_engine(engine, device, task.model, task.solver)
    session = chosen.open(task.model, task.solver, task.optimizer, task.params)
    session.load_data(task.data.x, task.data.target, task.data.weight)
    start = time.perf_counter()
    session.train_epoch(task.orders[0][: task.batch_size], task.batch_size)
    first = time.perf_counter()
    session.close()
    session = chosen.open(task.model, task.solver, task.optimizer, task.params)
    session.load_data(task.data.x, task.data.target, task.data.weight)
    reports: list[BatchReport] = []
    again = time.perf_counter()
    for order in task.orders:
        session.train_epoch(order, task.batch_size, reports.append)
    trained = time.perf_counter()
    found = session.equilibrium(task.x_test)
    tested = time.perf_counter()
    columns = BatchReport(*map(np.array, zip(*reports, strict=True)))  # type: ignore[arg-type]
    params = session.params()
    session.close()
    return Outcome(
        program=engine,
        loss=np.where(np.asarray(columns.weight) > 0, columns.loss, np.nan),
        n_evals=np.asarray(columns.n_evals) / np.maximum(columns.n_samples, 1),
        worst_residual=np.asarray(columns.worst_residual),
        n_failed=np.asarray(columns.n_failed),
        first_seconds=first - start,
        other_seconds=trained - again,
        test_seconds=tested - trained,
        params=params,
        output=found.output,
        n_test_failed=int((~found.converged).sum()),
    )
