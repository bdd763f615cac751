"""A contestant's process: `python -m contestants.worker MODULE SETTINGS FOLDER`.

It answers one line for each line it reads; numbers follow as name=value:

    train FILE      run through the samples that FILE (int64) names, in batches:
                    ok seconds=... forward=... backward=... loss=...
    predict PREFIX  solve the test samples: ok seconds=... evals=...
                    Writes PREFIX.state.f4, PREFIX.output.f4, the weights that act then
                    (PREFIX.NAME.f4), and PREFIX.form: the cell's form, "mlp tanh" say, and a line
                    with the name and the shape of each weight
    memory          ok peak=... (bytes)
    quit

The first line comes unasked: "ready", or "skip" or "failed" and the reason.
"""

import abc
import importlib
import json
import os
import resource
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contestants.task import Task, read_array, write_array
from pydeq.model import Params

__all__ = ["AbstractContestant", "Predicted", "SkippedError", "Trained"]


class SkippedError(Exception):
    """A contestant cannot run here; the message says why."""


@dataclass(frozen=True)
class Trained:
    """What some batches of training came to; NaN where it is not known.

    `forward` and `backward` are evaluations of the cell, and of products with its transposed
    Jacobian, per sample.
    """

    loss: float
    forward: float
    backward: float


@dataclass(frozen=True)
class Predicted:
    """States (n, n_state), raw outputs (n, 10) and mean evaluations per sample."""

    state: np.ndarray
    output: np.ndarray
    evals: float


class AbstractContestant(abc.ABC):
    """One program; modules of contestants define a final `Contestant(task, settings)`."""

    form: str
    """The cell: ``mlp`` or ``monotone`` (see :class:`pydeq.model.ModelSpec`) and the activation."""

    @abc.abstractmethod
    def train(self, order: np.ndarray) -> Trained:
        """Take one optimiser step for each batch of the samples at `order`; this is timed."""

    @abc.abstractmethod
    def settle(self, trained: Trained) -> Trained:
        """Add what has to be measured apart, after the clock has stopped."""

    @abc.abstractmethod
    def predict(self, x: np.ndarray) -> Predicted:
        """Return the equilibria of `x`; this is timed."""

    @abc.abstractmethod
    def weights(self) -> Params:
        """Return the weights as they act, after any normalisation, each (n_in, n_out)."""


def main() -> None:
    """Serve the pipe."""
    module, settings, folder = sys.argv[1:]
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    task = Task.read(Path(folder))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task.threads])
    try:
        contestant = importlib.import_module(f"contestants.{module}").Contestant(
            task, json.loads(settings)
        )
    except (SkippedError, ModuleNotFoundError) as error:
        print("skip", _line(error), file=answers)
        return
    except Exception as error:
        traceback.print_exc()
        print("failed", _line(error), file=answers)
        return
    print("ready", file=answers)
    for line in sys.stdin:
        command, *rest = line.split()
        if command == "quit":
            return
        try:
            numbers = _answer(contestant, task, command, rest)
        except Exception as error:
            traceback.print_exc()
            print("failed", _line(error), file=answers)
            return
        print("ok", *(f"{name}={value!r}" for name, value in numbers.items()), file=answers)


def _answer(contestant, task: Task, command: str, rest: list[str]) -> dict[str, float]:
    if command == "memory":
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if command == "train":
        order = read_array(Path(rest[0]), (-1,))
        start = time.perf_counter()
        trained = contestant.train(order)
        seconds = time.perf_counter() - start
        trained = contestant.settle(trained)
        return {
            "seconds": seconds,
            "forward": float(trained.forward),
            "backward": float(trained.backward),
            "loss": float(trained.loss),
        }
    start = time.perf_counter()
    found = contestant.predict(task.x_test)
    seconds = time.perf_counter() - start
    prefix = rest[0]
    write_array(Path(f"{prefix}.state.f4"), found.state)
    write_array(Path(f"{prefix}.output.f4"), found.output)
    lines = [contestant.form]
    for name, value in contestant.weights().items():
        write_array(Path(f"{prefix}.{name}.f4"), value)
        lines.append(" ".join([name, *map(str, value.shape)]))
    Path(f"{prefix}.form").write_text("\n".join(lines))
    return {"seconds": seconds, "evals": float(found.evals)}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")


if __name__ == "__main__":
    # The module of a contestant must meet the same classes, not those of __main__.
    from contestants import worker

    worker.main()
