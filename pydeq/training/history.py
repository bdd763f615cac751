"""The record of a fit: one entry an epoch, written and read as JSON."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydeq.model import html_table

__all__ = ["STOP_REASONS", "EpochRecord", "History"]

STOP_REASONS = ("", "max_iter", "tol", "interrupted", "diverged", "no_equilibrium")
"""What may have ended a fit; ``""`` while it runs. See :class:`History`."""


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch did.

    Attributes
    ----------
    loss : float
        Weighted mean over the samples that converged, penalties included, each at the weights its
        batch was computed with.
    grad_norm : float
        L2 norm of the gradient, mean over the batches that took a step.
    n_evals : float
        Evaluations of the cell in the forward solve, mean over samples.
    worst_residual : float
        Largest residual of a sample.
    n_failed : int
        Samples that did not reach their equilibrium; they are left out of the gradient.
    seconds : float
        Wall time, validation included.
    validation_score : float or None
        Accuracy or R^2 on the held-out part; None without early stopping.
    """

    loss: float
    grad_norm: float
    n_evals: float
    worst_residual: float
    n_failed: int
    seconds: float
    validation_score: float | None = None


@dataclass
class History:
    """The epochs of a fit, in order, and why it ended.

    ``history.loss`` and so on give a column as a list; ``history[i]`` an epoch's record.

    Attributes
    ----------
    records : list of EpochRecord
    stop_reason : str
        ``"max_iter"``: all epochs were run. ``"tol"``: the loss, or with early stopping the
        validation score, no longer improved. ``"interrupted"``: Ctrl-C. ``"diverged"``: the last
        record's epoch made the loss or a weight not finite, and was undone. ``"no_equilibrium"``:
        every sample of the last epoch failed, so that no step was taken and none would be.
        ``""``: the fit runs.

    Examples
    --------
    >>> from pydeq import presets
    >>> history = presets.double(max_iter=20).fit(*presets.double_data()).history_
    >>> len(history), history.stop_reason
    (20, 'max_iter')
    >>> history.loss[-1] < history.loss[0], history[0].n_failed
    (True, 0)
    >>> History.from_json(history.to_json()) == history
    True
    """

    records: list[EpochRecord] = field(default_factory=list)
    stop_reason: str = ""

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> EpochRecord:
        return self.records[index]

    def __iter__(self) -> Iterator[EpochRecord]:
        return iter(self.records)

    def __getattr__(self, name: str) -> list:
        if name in EpochRecord.__dataclass_fields__:
            return [getattr(record, name) for record in self.records]
        raise AttributeError(f"History has no column {name!r}")

    def _repr_html_(self) -> str:
        """Return a small table: the first and the last epoch, and what failed."""
        rows = [("epochs", f"{len(self):,}"), ("ended by", self.stop_reason or "still running")]
        if self.records:
            first, last = self.records[0], self.records[-1]
            rows += [
                ("loss", f"{first.loss:.4g} \u2192 {last.loss:.4g}"),
                ("evaluations per sample", f"{first.n_evals:.1f} \u2192 {last.n_evals:.1f}"),
                ("worst residual, last epoch", f"{last.worst_residual:.1e}"),
                ("failed solves, last epoch", f"{last.n_failed:,}"),
                ("failed solves, all epochs", f"{sum(self.n_failed):,}"),
                ("seconds", f"{sum(self.seconds):.1f}"),
            ]
            if last.validation_score is not None:
                rows.append(("validation score", f"{last.validation_score:.4f}"))
        return html_table("History", rows)

    def to_json(self) -> str:
        """Return the history as a JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "History":
        """Return the history that `to_json` wrote."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, data: Any) -> "History":
        """Return the history that ``dataclasses.asdict`` made a dict of.

        Raises
        ------
        ValueError
            If it is not one.
        """
        if not isinstance(data, dict) or data.keys() != {"records", "stop_reason"}:
            raise ValueError("a history must be an object of records and stop_reason")
        if data["stop_reason"] not in STOP_REASONS or not isinstance(data["records"], list):
            raise ValueError(f"stop_reason must be one of {', '.join(STOP_REASONS)}")
        return cls([_record(record) for record in data["records"]], data["stop_reason"])


def _record(data: Any) -> EpochRecord:
    """Return an epoch's record, checked; a loss of a fit that diverged is not finite."""
    if not isinstance(data, dict) or data.keys() != EpochRecord.__dataclass_fields__.keys():
        raise ValueError("an epoch's record must have the columns of a history")
    for name, value in data.items():
        kinds = (int,) if name == "n_failed" else (int, float)
        if name == "validation_score" and value is None:
            continue
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{name} of an epoch must be a number, not {value!r}")
        if isinstance(value, int) and abs(value) > 2**63:
            raise ValueError(f"{name} of an epoch is too large")
        if name in ("n_failed", "n_evals", "seconds") and value < 0:
            raise ValueError(f"{name} of an epoch must not be negative")
    return EpochRecord(**data)
