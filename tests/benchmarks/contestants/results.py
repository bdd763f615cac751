"""What a run came to, row by row, and the bars on it."""

import dataclasses
import itertools
import math
import statistics
from dataclasses import dataclass, field

from contestants.judge import Verdict
from contestants.table import OURS, PRESET, Row

__all__ = ["ACCURACY", "Bar", "Point", "Result", "bars", "table"]

ACCURACY = 0.97
"""The test accuracy that time is measured to."""

HEADER = (
    "contestant",
    "s an epoch",
    "evals forward",
    "evals backward",
    f"s to {ACCURACY}",
    "accuracy",
    "converged",
    "worst residual",
    "predictions / s",
    "evals predicting",
    "peak MB",
)


@dataclass(frozen=True)
class Point:
    """After a part of an epoch; seconds are of training alone, from the start."""

    epoch: float
    seconds: float
    forward: float
    backward: float
    loss: float
    predict_seconds: float
    predict_evals: float
    verdict: Verdict


@dataclass
class Result:
    """One contestant's run; `problem` is empty, or says why it did not end."""

    row: Row
    n_parts: int
    n_test: int
    points: list[Point] = field(default_factory=list)
    peak: float = math.nan
    problem: str = ""

    @property
    def epochs(self) -> list[list[Point]]:
        """The points of each whole epoch."""
        n = self.n_parts
        return [self.points[i : i + n] for i in range(0, len(self.points) // n * n, n)]

    @property
    def epoch_seconds(self) -> float:
        """Median seconds of an epoch, the first left out (it compiles) where there is another."""
        ends = [0.0, *(epoch[-1].seconds for epoch in self.epochs)]
        each = [after - before for before, after in itertools.pairwise(ends)]
        return statistics.median(each[1:] or each or [math.nan])

    @property
    def seconds_to_accuracy(self) -> float:
        """Seconds of training, compilation included, until a part ended at `ACCURACY`."""
        reached = (p.seconds for p in self.points if p.verdict.accuracy >= ACCURACY)
        return next(reached, math.inf)

    @property
    def predict_seconds(self) -> float:
        """Median seconds of predicting the test samples, the first left out."""
        each = [point.predict_seconds for point in self.points]
        return statistics.median(each[1:] or each or [math.nan])

    def mean(self, name: str) -> float:
        """Return the mean of an attribute of the last epoch's points."""
        last = self.epochs[-1:] or [[]]
        return statistics.fmean([getattr(point, name) for point in last[0]] or [math.nan])

    def as_dict(self) -> dict:
        """Return all of it for JSON."""
        return {
            "name": self.row.name,
            "family": self.row.family,
            "settings": self.row.settings,
            "problem": self.problem,
            "epoch_seconds": self.epoch_seconds,
            "seconds_to_accuracy": self.seconds_to_accuracy,
            "predict_seconds": self.predict_seconds,
            "peak_bytes": self.peak,
            "points": [dataclasses.asdict(point) for point in self.points],
        }


def table(results: list[Result]) -> str:
    """Return the results as Markdown."""
    lines = [HEADER, ("---",) + ("---:",) * (len(HEADER) - 1)]
    for result in results:
        if not result.points:
            lines.append((result.row.name, result.problem, *[""] * (len(HEADER) - 2)))
            continue
        last = result.points[-1]
        note = f" ({result.problem} after epoch {last.epoch:g})" if result.problem else ""
        reached = result.seconds_to_accuracy
        lines.append(
            (
                result.row.name + ("" if result.row.same_model else " *") + note,
                f"{result.epoch_seconds:.2f}",
                _number(result.mean("forward")),
                _number(result.mean("backward")),
                f"{reached:.1f}" if reached < math.inf else "not reached",
                f"{last.verdict.accuracy:.4f}",
                f"{100 * last.verdict.converged:.2f} %",
                f"{last.verdict.worst:.1e}",
                f"{result.n_test / result.predict_seconds:,.0f}",
                _number(last.predict_evals),
                f"{result.peak / 2**20:.0f}",
            )
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


@dataclass(frozen=True)
class Bar:
    """One bar; `reached` is None where it could not be measured, and `measured` says why."""

    what: str
    measured: str
    bar: str
    reached: bool | None


def bars(results: list[Result]) -> list[Bar]:
    """Return the bars of the issue that these results say something about."""
    by_name = {result.row.name: result for result in results if result.points}
    ours = by_name.get(OURS)
    theirs = [r for r in by_name.values() if r.row.family == "torchdeq"]
    found = [
        _ratio(
            "time to 0.97 test accuracy, over the best torchdeq",
            ours,
            theirs,
            "seconds_to_accuracy",
            1 / 3,
        ),
        _ratio("seconds an epoch, over the best torchdeq", ours, theirs, "epoch_seconds", 1 / 2),
        _ratio(
            "seconds an epoch of the mnist preset, Julia over JAX",
            by_name.get(PRESET[1]),
            [by_name[PRESET[0]]] if PRESET[0] in by_name else [],
            "epoch_seconds",
            1.0,
        ),
    ]
    for name in (OURS, "pydeq DEQClassifier()"):
        if name in by_name:
            last = by_name[name].points[-1]
            evals = last.predict_evals
            what = f"evaluations a sample in prediction: {name}"
            found.append(Bar(what, f"{evals:.2f}", "<= 8", evals <= 8))
            share = last.verdict.converged
            what = f"test samples converged: {name}"
            found.append(Bar(what, f"{100 * share:.2f} %", "all", share == 1))
    return found


def _ratio(what: str, ours, theirs: list[Result], name: str, most: float) -> Bar:
    bar = f"<= 1/{round(1 / most)}"
    if ours is None or not theirs:
        return Bar(what, "not measured: one of the two did not run", bar, None)
    best = min(theirs, key=lambda result: getattr(result, name))
    own, other = getattr(ours, name), getattr(best, name)
    if math.isinf(own):
        reached = None if math.isinf(other) else False
        return Bar(what, "pydeq did not get there", bar, reached)
    if math.isinf(other):
        return Bar(what, f"{own:.2f} s; the other never got there", bar, True)
    measured = f"{own / other:.3f} ({own:.2f} s over {other:.2f} s, {best.row.name})"
    return Bar(what, measured, bar, own <= most * other)
