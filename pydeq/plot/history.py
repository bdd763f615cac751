"""Columns of several histories over the epochs, over each other."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pydeq.plot.style import COLORS, LINES, MARKERS, new_axes
from pydeq.training import History

__all__ = ["history_curves"]

_LABELS = {
    "loss": "loss",
    "grad_norm": "norm of the gradient",
    "n_evals": "evaluations of the cell per sample",
    "worst_residual": "largest residual of a sample",
    "n_failed": "samples not converged",
    "seconds": "wall time (s)",
    "validation_score": "validation score",
}
_LOGARITHMIC = ("loss", "grad_norm", "n_evals", "worst_residual", "seconds")


def history_curves(
    histories: Mapping[str, Any], column: str = "loss", *, ax: Axes | None = None
) -> Axes:
    """Draw one column of several fits' histories over the epochs.

    A fit has one colour, marker and line style, and each line is thinner than the one before, so
    that all are seen where they lie on each other.

    Parameters
    ----------
    histories : mapping of str to History or fitted estimator
        The fits under the names that the legend is to have.
    column : str, default="loss"
        A field of :class:`pydeq.training.history.EpochRecord`, such as ``"n_evals"``. The axis is
        logarithmic where the values are positive throughout (not for counts and scores).
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If there is no such column, or no epoch.

    Examples
    --------
    >>> from pydeq import plot, presets
    >>> model = presets.double(max_iter=3).fit(*presets.double_data())
    >>> plot.history_curves({"double": model}, "n_evals").get_ylabel()
    'evaluations of the cell per sample'
    """
    if column not in _LABELS:
        raise ValueError(f"history_curves needs a column of {', '.join(_LABELS)}; got {column!r}")
    curves = {name: _column(fit, column) for name, fit in histories.items()}
    if not any(len(values) for values in curves.values()):
        raise ValueError("history_curves needs at least one fit with an epoch; got none")
    ax = new_axes(ax, (6.4, 4.2))
    for number, (name, values) in enumerate(curves.items()):
        ax.plot(
            np.arange(1, len(values) + 1),
            values,
            label=name,
            color=COLORS[number % len(COLORS)],
            linestyle=LINES[number % len(LINES)],
            marker=MARKERS[number % len(MARKERS)],
            markevery=max(1, len(values) // 12),
            markersize=5,
            linewidth=max(1.0, 3.2 - 0.6 * number),
        )
    finite = np.concatenate(list(curves.values()))
    finite = finite[np.isfinite(finite)]
    if column in _LOGARITHMIC and finite.size and finite.min() > 0:
        ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(color="0.9", linewidth=0.8)
    label = _LABELS[column]
    ax.set(title=f"{label[0].upper()}{label[1:]}, by epoch", xlabel="epoch", ylabel=label)
    ax.legend(loc="best")
    return ax


def _column(fit: Any, column: str) -> np.ndarray:
    """Return a column of a History, or of an estimator's, as floats, (n_epochs,)."""
    history: History = getattr(fit, "history_", fit)
    return np.array(getattr(history, column), dtype=float)
