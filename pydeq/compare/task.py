"""The presets of the blog posts in one engine after the other, from the same start.

What is handed to each is the same to the bit: weights, samples, batches and their order. What comes
back is put side by side: :func:`compare` makes the numbers, :func:`table` and :func:`draw` show
them. :mod:`pydeq.compare.original` adds the plain Julia programs, which know nothing of pydeq.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.utils import check_random_state

from pydeq import datasets, presets
from pydeq.engines import get_engine
from pydeq.estimators import parameters
from pydeq.model import (
    LOSSES,
    ModelSpec,
    OptimizerSpec,
    Params,
    SolverSpec,
    epoch_order,
    flatten,
    init_params,
    iter_batches,
)
from pydeq.plot import style
from pydeq.training import Data

__all__ = ["Outcome", "Task", "double_task", "draw", "mnist_task", "run_engine", "table"]

PART = 8
"""Batches of an epoch of `mnist` between two points of its curves."""


@dataclass(frozen=True)
class Task:
    """What every program is given.

    Attributes
    ----------
    preset : str
    model : ModelSpec
    solver : SolverSpec
    optimizer : OptimizerSpec
    params : Params
        The weights to start from.
    data : Data
    parts : list of ndarray
        Sample indices in the order in which they are trained on. Each part is whole batches (its
        last may be shorter), and one point of the curves. The first is a single batch: with it, an
        engine compiles.
    n_epochs : int
    batch_size : int
    x_test : ndarray (n_test, n_features)
    y_test : ndarray (n_test,)
        What is right for them: values, or classes.
    """

    preset: str
    model: ModelSpec
    solver: SolverSpec
    optimizer: OptimizerSpec
    params: Params
    data: Data
    parts: list[np.ndarray]
    n_epochs: int
    batch_size: int
    x_test: np.ndarray
    y_test: np.ndarray

    def batches(self, part: np.ndarray) -> list[np.ndarray]:
        """Return the batches of a part."""
        return list(iter_batches(part, self.batch_size))


@dataclass(frozen=True)
class Outcome:
    """What one program made of a task.

    Attributes
    ----------
    program : str
    loss, n_evals, n_failed, seconds : ndarray (n_parts,)
        As in :class:`pydeq.training.history.EpochRecord`, of each part.
    worst_residual : ndarray (n_parts,) or None
        None where the program does not tell.
    params : Params
    output : ndarray (n_test, n_outputs)
        The raw output for the test samples.
    n_test_failed : int or None
    test_seconds : float
    """

    program: str
    loss: np.ndarray
    n_evals: np.ndarray
    worst_residual: np.ndarray | None
    n_failed: np.ndarray
    seconds: np.ndarray
    params: Params
    output: np.ndarray
    n_test_failed: int | None
    test_seconds: float


def double_task(n_epochs: int | None = None, **overrides: Any) -> Task:
    """Return the task of learning y = 2x; the test samples are -10 to 10.

    Parameters
    ----------
    n_epochs : int, optional
        Instead of the preset's 1000.
    **overrides
        Parameters of :func:`pydeq.presets.double` to set otherwise.
    """
    if n_epochs is not None:
        overrides["max_iter"] = n_epochs
    X, y = presets.double_data()
    x_test = np.arange(-10.0, 11.0)[:, np.newaxis]
    data = Data(X, y[:, np.newaxis], np.ones(len(X)))
    settings = presets.double(**overrides).get_params(deep=False)
    return _task("double", settings, data, x_test, 2 * x_test[:, 0], part=1)


def mnist_task(
    root: Path, n_samples: int | None = None, n_epochs: int | None = None, **overrides: Any
) -> Task:
    """Return the task of learning MNIST's digits.

    Parameters
    ----------
    root : Path
        Folder of the files; see :func:`pydeq.datasets.load_mnist`.
    n_samples : int, optional
        Train on the first of the samples only.
    n_epochs : int, optional
        Instead of the preset's one.
    **overrides
        Parameters of :func:`pydeq.presets.mnist` to set otherwise.
    """
    if n_epochs is not None:
        overrides["max_iter"] = n_epochs
    X, y, x_test, y_test = datasets.load_mnist(root)
    X, y = X[:n_samples], y[:n_samples]
    data = Data(X, np.eye(10, dtype=X.dtype)[y], np.ones(len(X), X.dtype))
    settings = presets.mnist(**overrides).get_params(deep=False)
    return _task("mnist", settings, data, x_test, y_test, part=PART)


def _task(
    preset: str,
    settings: dict[str, Any],
    data: Data,
    x_test: np.ndarray,
    y_test: np.ndarray,
    part: int,
) -> Task:
    """Return the task with the start that the estimator's own fit would have."""
    model = parameters.model_spec(settings, data.x.shape[1], data.target.shape[1])
    training = parameters.train_spec(settings, len(data))
    random_state = check_random_state(settings["random_state"])
    rng = np.random.default_rng(random_state.randint(np.iinfo(np.int32).max))
    params = init_params(model, rng, data.x.dtype)
    optimizer = parameters.optimizer_spec(settings, LOSSES)
    optimizer = dataclasses.replace(optimizer, seed=int(rng.integers(2**31)))
    orders = [epoch_order(len(data), training.shuffle, rng) for _ in range(training.max_iter)]
    batch_size = training.batch_size
    parts = [orders[0][:batch_size]]
    for order in (orders[0][batch_size:], *orders[1:]):
        parts += iter_batches(order, part * batch_size)
    return Task(
        preset=preset,
        model=model,
        solver=parameters.solver_spec(settings, model),
        optimizer=optimizer,
        params=params,
        data=data,
        parts=parts,
        n_epochs=training.max_iter,
        batch_size=batch_size,
        x_test=x_test,
        y_test=y_test,
    )


def run_engine(task: Task, engine: str, device: str = "auto") -> Outcome:
    """Train and test in one engine."""
    session = get_engine(engine, device).open(task.model, task.solver, task.optimizer, task.params)
    session.load_data(task.data.x, task.data.target, task.data.weight)
    reports, seconds = [], []
    for order in task.parts:
        start = time.perf_counter()
        reports.append(dataclasses.asdict(session.train_epoch(order, task.batch_size)))
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    found = session.equilibrium(task.x_test)
    test_seconds = time.perf_counter() - start
    fields = ("loss", "n_evals", "worst_residual", "n_failed")
    outcome = Outcome(
        program=engine,
        **{field: np.array([report[field] for report in reports]) for field in fields},
        seconds=np.array(seconds),
        params=session.params(),
        output=found.output,
        n_test_failed=int((~found.converged).sum()),
        test_seconds=test_seconds,
    )
    session.close()
    return outcome


def accuracy(task: Task, outcome: Outcome) -> float:
    """Return the share of the test samples that are classified rightly."""
    return float(np.mean(outcome.output.argmax(axis=1) == task.y_test))


def prediction_for_minus_five(task: Task, outcome: Outcome) -> float:
    """Return what the model makes of -5, which it has not seen."""
    return float(outcome.output[task.x_test[:, 0] == -5, 0][0])


def table(task: Task, outcomes: list[Outcome]) -> Iterator[str]:
    """Yield the lines of the table: a column for each program.

    The differences are the largest, relative to the largest value in the first program.
    """
    width = max(14, *(len(outcome.program) + 2 for outcome in outcomes))
    names = [outcome.program for outcome in outcomes]
    yield _line("", names, width)
    for label, text in _rows(task):
        yield _line(label, [text(outcome) for outcome in outcomes], width)
    first, *others = outcomes
    if others:
        yield _line(f"differences from {first.program}", [], width)
    for label, value in _differences(task).items():
        differences = [_relative(value(first), value(other)) for other in others]
        if others:
            yield _line(f"  {label}", ["", *(f"{d:.1e}" for d in differences)], width)


def _line(label: str, texts: list[str], width: int) -> str:
    return (f"{label:<28}" + "".join(f"{text:>{width}}" for text in texts)).rstrip()


def _rows(task: Task) -> Iterator[tuple[str, Callable[[Outcome], str]]]:
    """Yield the rows: a label, and the text of an outcome."""
    n_train, n_test = len(task.data) * task.n_epochs, len(task.x_test)
    yield "loss, last epoch", lambda o: f"{_last_epoch(task, o.loss):.5g}"
    if task.preset == "double":
        yield "prediction for -5", lambda o: f"{prediction_for_minus_five(task, o):.4f}"
    else:
        yield "test accuracy", lambda o: f"{accuracy(task, o):.4f}"
    yield "evaluations, last epoch", lambda o: f"{_last_epoch(task, o.n_evals):.1f}"
    yield "worst residual, last part", lambda o: _or_dash(o.worst_residual, ".1e")
    yield f"failed of {n_train:,} solves", lambda o: f"{o.n_failed.sum():,}"
    yield f"failed of {n_test:,} in the test", lambda o: _or_dash(o.n_test_failed, ",")
    yield "seconds, first step", lambda o: f"{o.seconds[0]:.1f}"
    yield "seconds, all others", lambda o: f"{o.seconds[1:].sum():.1f}"
    yield "seconds, test", lambda o: f"{o.test_seconds:.1f}"


def _or_dash(value: np.ndarray | int | None, form: str) -> str:
    """Return the value, or the last of several, in this form; a dash where it is not known."""
    if value is None:
        return "-"
    return format(value if isinstance(value, int) else value[-1], form)


def _last_epoch(task: Task, values: np.ndarray) -> float:
    """Return the mean over the last epoch's parts, each by its samples; NaN counts as nothing."""
    sizes = np.array([len(part) for part in task.parts], float)
    sizes[np.cumsum(sizes[::-1])[::-1] > len(task.data)] = 0
    sizes[np.isnan(values)] = 0
    return float(np.average(np.nan_to_num(values), weights=sizes)) if sizes.any() else np.nan


def _differences(task: Task) -> dict[str, Callable[[Outcome], np.ndarray]]:
    return {
        "weights": lambda o: flatten(task.model, o.params),
        "predictions": lambda o: o.output,
        "loss curve": lambda o: o.loss,
    }


def _relative(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the largest difference over the largest expected value; NaN where either is."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def draw(task: Task, outcomes: list[Outcome], path: Path) -> Path:
    """Draw loss and evaluations as they went, and write the figure to `path`."""
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = np.cumsum([len(part) for part in task.parts]) / len(task.data)
    for number, outcome in enumerate(outcomes):
        # Curves that lie on each other are all seen: each is thinner than the one before.
        line = {
            "label": outcome.program,
            "linewidth": 4.5 / (number + 1),
            "color": style.COLORS[number],
            "linestyle": style.LINES[number],
        }
        left.plot(epochs, outcome.loss, **line)
        right.plot(epochs, outcome.n_evals, **line)
    left.set(xlabel="epoch", ylabel="loss", yscale="log")
    right.set(xlabel="epoch", ylabel="evaluations a sample")
    left.legend()
    figure.suptitle(f"{task.preset}, tolerance {task.solver.reltol:g}")
    figure.savefig(path, dpi=120)
    return path
