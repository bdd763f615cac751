"""A preset in each engine and in plain Julia, side by side, from the same start."""

from pydeq.compare import reference
from pydeq.compare.original import run_original
from pydeq.compare.outcome import Outcome, run_engine
from pydeq.compare.report import draw, table
from pydeq.compare.task import Task, double_task, mnist_task

__all__ = [
    "Outcome",
    "Task",
    "double_task",
    "draw",
    "mnist_task",
    "reference",
    "run_engine",
    "run_original",
    "table",
]
