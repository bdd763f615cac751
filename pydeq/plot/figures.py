"""Figures of equilibria: how they are reached, and what they predict.

Each function draws on `ax`, or on a new figure where `ax` is None, and returns the Axes. Nothing
is shown and no backend is chosen: that is the caller's. Lines and classes differ by line style,
marker or label and not by colour alone, so that a figure can be printed in black and white.
"""

from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from pydeq.fixed_points import FixedPoint
from pydeq.plot.clusters import animate_feature_clusters, feature_clusters
from pydeq.plot.digits import digit, digit_grid
from pydeq.plot.history import history_curves
from pydeq.plot.style import COLORS, INK, LINES, MARKERS, check_trajectory, new_axes

__all__ = [
    "animate_feature_clusters",
    "cobweb",
    "depth_trajectories",
    "digit",
    "digit_grid",
    "feature_clusters",
    "history_curves",
    "prediction_vs_truth",
    "training_curve",
]

# More lines than these cannot be told apart.
_MAX_SAMPLES = 10
_MAX_STATES = 5


def cobweb(f: Callable[[Any], Any], result: FixedPoint, *, ax: Axes | None = None) -> Axes:
    """Draw a scalar fixed-point iteration as a path between ``y = f(x)`` and ``y = x``.

    Parameters
    ----------
    f : callable
        The function that was iterated, float to float.
    result : FixedPoint
        What ``fixed_point(f, x0)`` returned for a scalar `x0`.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the iteration was not that of a scalar.

    Examples
    --------
    >>> import numpy as np
    >>> from pydeq import fixed_point, plot
    >>> plot.cobweb(np.cos, fixed_point(np.cos, -1.0)).get_xlabel()
    '$x$'
    """
    z = result.trajectory
    if z.ndim != 1:
        raise ValueError(
            "cobweb needs the fixed point of a scalar function, with a trajectory of shape "
            f"(n_steps + 1,); got shape {z.shape}"
        )
    ax = new_axes(ax, (5.4, 5.0))
    low, high = float(z.min()), float(z.max())
    margin = 0.15 * (high - low) or 0.5
    x = np.linspace(low - margin, high + margin, 401)
    y = _curve(f, x)

    # From (z_k, z_k) up or down to (z_k, z_k+1) on the curve, then across to the diagonal.
    path_x = np.repeat(z, 2)[:-1]
    path_y = np.repeat(z, 2)[1:]
    ax.plot(x, y, "-", color=INK, linewidth=1.8, label="y = f(x)")
    ax.plot(x, x, "--", color="0.5", linewidth=1.2, label="y = x")
    ax.plot(path_x, path_y, "-", color=COLORS[0], linewidth=0.9, label="iterates")
    ax.plot(z[0], z[0], "s", color=COLORS[0], markersize=6, label="start")
    ax.plot(
        z[-1],
        z[-1],
        "o",
        color=COLORS[2],
        markersize=8,
        label="fixed point" if result.converged else "last iterate",
    )
    outcome = "converged to" if result.converged else "not converged, at"
    ax.set(
        title=f"Fixed-point iteration\n{outcome} {float(z[-1]):.6g} after {len(z) - 1} steps",
        xlabel="$x$",
        ylabel="$f(x)$",
    )
    ax.legend(loc="best")
    return ax


def _curve(f: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    """Return f at the points `x`, (n,), NaN where it is not defined: x reaches beyond the path."""

    def at(point: np.float64) -> float:
        try:
            return float(f(point))
        except (ArithmeticError, ValueError):  # as math.sqrt and math.log raise
            return np.nan

    with np.errstate(all="ignore"):
        return np.array([at(point) for point in x])


def prediction_vs_truth(y_true: ArrayLike, y_pred: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Draw predictions over true values, with the diagonal on which they would be right.

    Parameters
    ----------
    y_true, y_pred : array-like (n,) or (n, n_outputs)
        True and predicted values; each output has its own marker.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the shapes differ, are not 1-D or 2-D, or hold no samples.

    Examples
    --------
    >>> from pydeq import plot
    >>> plot.prediction_vs_truth([1.0, 2.0, 3.0], [1.0, 2.0, 3.3]).get_title()
    'Prediction over truth (root mean squared error 0.173)'
    """
    true, predicted = np.asarray(y_true, dtype=float), np.asarray(y_pred, dtype=float)
    if true.shape != predicted.shape or true.ndim not in (1, 2) or true.size == 0:
        raise ValueError(
            "prediction_vs_truth needs y_true and y_pred of one shape, (n,) or (n, n_outputs); "
            f"got {true.shape} and {predicted.shape}"
        )
    ax = new_axes(ax, (5.4, 5.0))
    n_outputs = 1 if true.ndim == 1 else true.shape[1]
    columns = zip(true.reshape(-1, n_outputs).T, predicted.reshape(-1, n_outputs).T, strict=True)
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    ax.plot(ends, ends, "--", color="0.5", linewidth=1.2, label="prediction = truth", zorder=1)
    styles = zip(cycle(MARKERS), cycle(COLORS), strict=False)
    for k, ((t, p), (marker, color)) in enumerate(zip(columns, styles, strict=False)):
        label = "samples" if n_outputs == 1 else f"output {k}"
        dots = ax.scatter(t, p, s=34, color=color, marker=marker, label=label)
        dots.set(edgecolor=INK, linewidth=0.6, alpha=0.85)
    rmse = float(np.sqrt(np.mean((predicted - true) ** 2)))
    ax.set(
        title=f"Prediction over truth (root mean squared error {rmse:.3g})",
        xlabel="true value",
        ylabel="predicted value",
    )
    ax.legend(loc="best")
    return ax


def training_curve(losses: Any, *, ax: Axes | None = None) -> Axes:
    """Draw the loss over the epochs, on a logarithmic axis where it is positive throughout.

    Parameters
    ----------
    losses : array-like (n_epochs,), fitted estimator or History
        The losses, or an object that holds them as ``loss_curve_`` or ``loss``.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If there is no finite loss, or the estimator has not been fitted.

    Examples
    --------
    >>> from pydeq import plot
    >>> plot.training_curve([3.0, 2.0, 1.5]).get_title()
    'Training: loss 1.5 at the end'
    """
    # loss_curve_ first: an estimator's `loss` is its parameter, a name.
    values = getattr(losses, "loss_curve_", getattr(losses, "loss", losses))
    if isinstance(values, str):
        raise ValueError(
            "training_curve needs losses, a History or a fitted estimator; "
            f"got a {type(losses).__name__} without loss_curve_: fit it first"
        )
    loss = np.asarray(values, dtype=float)
    if loss.ndim != 1 or not np.isfinite(loss).any():
        raise ValueError(
            "training_curve needs a sequence of losses (n_epochs,), one of them finite; "
            f"got shape {loss.shape} with {int(np.isfinite(loss).sum())} finite values"
        )
    ax = new_axes(ax, (6.0, 4.0))
    epochs = np.arange(1, len(loss) + 1)
    # A marker per epoch, while there is room for it.
    marker = "o" if len(loss) <= 50 else ""
    ax.plot(epochs, loss, "-", marker=marker, color=COLORS[0], markersize=5, linewidth=1.6)
    if loss[np.isfinite(loss)].min() > 0:
        ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(color="0.9", linewidth=0.8)
    last = loss[np.isfinite(loss)][-1]
    ax.set(title=f"Training: loss {last:.3g} at the end", xlabel="epoch", ylabel="loss")
    return ax


def depth_trajectories(trajectory: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Draw how the states of the samples settle as the cell is applied again and again.

    A sample has one colour, marker and line style. At most the first 10 samples and 5 states are
    drawn; the title says how many there are.

    Parameters
    ----------
    trajectory : array-like (depth + 1, n, n_state)
        The iterates, as an estimator's ``trajectory(X, depth)`` returns them.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the trajectory has another shape, or is empty.

    Examples
    --------
    >>> from pydeq import plot, presets
    >>> X, y = presets.double_data()
    >>> model = presets.double(max_iter=5).fit(X, y)
    >>> plot.depth_trajectories(model.trajectory(X, 20)).get_title()
    'States over depth (10 samples, 1 state)'
    """
    u = check_trajectory(trajectory, "depth_trajectories")
    ax = new_axes(ax, (6.4, 4.2))
    n_depth, n, n_state = u.shape
    n_lines, n_states = min(n, _MAX_SAMPLES), min(n_state, _MAX_STATES)
    depth = np.arange(n_depth)
    for i in range(n_lines):
        lines = ax.plot(
            depth,
            u[:, i, :n_states],
            linestyle=LINES[i % len(LINES)],
            marker=MARKERS[i],
            markevery=max(1, n_depth // 12),
            color=COLORS[i],
            markersize=4.5,
            linewidth=1.2,
        )
        lines[0].set_label(f"sample {i}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    shown = f"{_share(n_lines, n, 'sample')}, {_share(n_states, n_state, 'state')}"
    ax.set(
        title=f"States over depth ({shown})",
        xlabel="depth (applications of the cell)",
        ylabel="state $u$",
    )
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize="small")
    return ax


def _share(shown: int, total: int, noun: str) -> str:
    """Return "3 samples", or "10 of 128 samples"."""
    count = f"{total}" if shown == total else f"{shown} of {total}"
    return f"{count} {noun}{'' if total == 1 else 's'}"
