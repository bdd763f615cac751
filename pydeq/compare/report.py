"""The outcomes of a comparison side by side, as a table and as curves."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pydeq.compare.outcome import Outcome
from pydeq.compare.task import Task
from pydeq.model import flatten
from pydeq.plot import style

__all__ = ["draw", "table"]

POINTS = 60
"""Most points of a curve, or a few more: a point is the mean over a run of batches."""


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
    n_train, n_test = len(task.data) * len(task.orders), len(task.x_test)
    yield "loss, last epoch", lambda o: f"{_last_epoch(task, o.loss):.5g}"
    if task.preset == "double":
        yield "prediction for -5", lambda o: f"{prediction_for_minus_five(task, o):.4f}"
    else:
        yield "test accuracy", lambda o: f"{accuracy(task, o):.4f}"
    yield "evaluations, last epoch", lambda o: f"{_last_epoch(task, o.n_evals):.1f}"
    yield "worst residual, last batch", lambda o: _or_dash(o.worst_residual, ".1e")
    yield f"failed of {n_train:,} solves", lambda o: f"{o.n_failed.sum():,}"
    yield f"failed of {n_test:,} in the test", lambda o: _or_dash(o.n_test_failed, ",")
    yield "seconds, first step", lambda o: f"{o.first_seconds:.1f}"
    yield "seconds, all others", lambda o: f"{o.other_seconds:.1f}"
    yield "seconds, test", lambda o: f"{o.test_seconds:.1f}"


def _or_dash(value: np.ndarray | int | None, form: str) -> str:
    """Return the value, or the last of several, in this form; a dash where it is not known."""
    if value is None:
        return "-"
    return format(value if isinstance(value, int) else value[-1], form)


def _last_epoch(task: Task, values: np.ndarray) -> float:
    """Return the mean over the last epoch's batches, by their samples; NaN counts as nothing."""
    n_batches = -(-len(task.data) // task.batch_size)
    values, sizes = values[-n_batches:], task.batch_sizes[-n_batches:]
    known = ~np.isnan(values)
    return float(np.average(values[known], weights=sizes[known])) if known.any() else np.nan


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
    points = _points(task)
    sizes = np.add.reduceat(task.batch_sizes, points)
    epochs = np.cumsum(sizes) / len(task.data)
    for number, outcome in enumerate(outcomes):
        # Curves that lie on each other are all seen: each is thinner than the one before.
        line = {
            "label": outcome.program,
            "linewidth": 4.5 / (number + 1),
            "color": style.COLORS[number],
            "linestyle": style.LINES[number],
        }
        for ax, values in ((left, outcome.loss), (right, outcome.n_evals)):
            ax.plot(epochs, np.add.reduceat(values * task.batch_sizes, points) / sizes, **line)
    left.set(xlabel="epoch", ylabel="loss", yscale="log")
    right.set(xlabel="epoch", ylabel="evaluations a sample")
    left.legend()
    figure.suptitle(f"{task.preset}, tolerance {task.solver.reltol:g}")
    figure.savefig(path, dpi=120)
    return path


def _points(task: Task) -> np.ndarray:
    """Return the first batch of each point of the curves, at most `POINTS` of them."""
    n_batches = len(task.batch_sizes)
    return np.arange(0, n_batches, max(1, n_batches // POINTS))
