"""States by class in the plane of their principal components, still and over depth."""

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA

from pydeq.plot.style import COLORS, INK, MARKERS, check_trajectory, new_axes

__all__ = ["animate_feature_clusters", "feature_clusters"]


def feature_clusters(states: ArrayLike, y: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Draw states by class in the plane of their first two principal components.

    A class has a colour, a marker, and its label at the median of its points.

    Parameters
    ----------
    states : array-like (n, n_state)
        For example the equilibria, ``estimator.equilibrium(X).state``; n and n_state at least 2.
    y : array-like (n,)
        The class labels.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the shapes do not fit, a state is not finite, or all states are the same.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from pydeq import plot
    >>> states, y = load_iris(return_X_y=True)  # any (n, n_state) will do
    >>> plot.feature_clusters(states, y).get_title()
    'Equilibrium states by class (150 samples)'
    """
    z = np.asarray(states, dtype=float)
    if z.ndim != 2:
        raise ValueError(f"feature_clusters needs states (n, n_state); got shape {z.shape}")
    labels = _labels(y, len(z))
    _check_finite(z)
    basis = _basis(z)
    ax = new_axes(ax, (6.4, 5.0))
    _draw_clusters(ax, basis.transform(z), labels)
    _label_components(ax, basis)
    ax.set_title(f"Equilibrium states by class ({len(z)} samples)")
    return ax


def animate_feature_clusters(
    trajectory: ArrayLike,
    y: ArrayLike,
    path: str | Path | None = None,
    *,
    fps: int = 3,
    ax: Axes | None = None,
) -> FuncAnimation:
    """Animate how the classes part as the cell is applied again and again.

    All frames share one plane, that of the last iterate's principal components.

    Parameters
    ----------
    trajectory : array-like (depth + 1, n, n_state)
        The iterates, as an estimator's ``trajectory(X, depth)`` returns them; a frame each.
    y : array-like (n,)
        The class labels.
    path : str or Path, optional
        Where to write the animation, as a GIF.
    fps : int, default=3
        Frames a second.
    ax : Axes, optional

    Returns
    -------
    FuncAnimation
        Keep it for as long as it is to run: matplotlib stops an animation that is dropped.

    Raises
    ------
    ValueError
        If the shapes do not fit, a state is not finite, or all last states are the same.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from pydeq import plot
    >>> states, y = load_iris(return_X_y=True)
    >>> depth = np.stack([states / 2, states])  # as estimator.trajectory(X, 1) returns
    >>> animation = plot.animate_feature_clusters(depth, y, "clusters.gif")
    """
    u = check_trajectory(trajectory, "animate_feature_clusters")
    labels = _labels(y, u.shape[1])
    _check_finite(u)
    basis = _basis(u[-1])
    points = np.stack([basis.transform(frame) for frame in u])
    ax = new_axes(ax, (6.4, 5.0))
    clusters, names = _draw_clusters(ax, points[0], labels)
    _label_components(ax, basis)
    low, high = points.min(axis=(0, 1)), points.max(axis=(0, 1))
    margin = 0.05 * (high - low)
    ax.set(
        xlim=(low[0] - margin[0], high[0] + margin[0]),
        ylim=(low[1] - margin[1], high[1] + margin[1]),
    )

    def draw(depth: int) -> list[Any]:
        for label, cluster, name in zip(np.unique(labels), clusters, names, strict=True):
            members = points[depth][labels == label]
            cluster.set_offsets(members)
            name.set_position(np.median(members, axis=0))
        ax.set_title(f"States by class at depth {depth} of {len(points) - 1}")
        return [*clusters, *names]

    # The figure as a whole, also where ax belongs to a subfigure.
    figure = ax.figure.canvas.figure
    animation = FuncAnimation(figure, draw, frames=len(points), interval=1000 / fps)
    if path is not None:
        animation.save(path, writer=PillowWriter(fps=fps))
    return animation


def _draw_clusters(ax: Axes, points: np.ndarray, labels: np.ndarray) -> tuple[list, list]:
    """Scatter `points`, (n, 2), by class; return the scatters and the classes' text labels."""
    clusters, names = [], []
    styles = zip(cycle(MARKERS), cycle(COLORS), strict=False)
    for label, (marker, color) in zip(np.unique(labels), styles, strict=False):
        members = points[labels == label]
        dots = ax.scatter(members[:, 0], members[:, 1], s=26, color=color, marker=marker)
        dots.set(edgecolor=INK, linewidth=0.4, alpha=0.8, label=str(label))
        clusters.append(dots)
        x, y = np.median(members, axis=0)
        name = ax.text(x, y, str(label), weight="bold", size="x-large", ha="center", va="center")
        name.set_path_effects([withStroke(linewidth=3.5, foreground="white")])
        names.append(name)
    ax.legend(title="class", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return clusters, names


def _label_components(ax: Axes, basis: PCA) -> None:
    """Name the axes after the principal components and their shares of the variance."""
    first, second = basis.explained_variance_ratio_
    ax.set(
        xlabel=f"principal component 1 ({first:.0%} of the variance)",
        ylabel=f"principal component 2 ({second:.0%} of the variance)",
    )


def _basis(states: np.ndarray) -> PCA:
    """Return the plane of the first two principal components of `states`, (n, n_state)."""
    if min(states.shape) < 2:
        raise ValueError(
            "two principal components need at least 2 samples of at least 2 states; "
            f"got shape {states.shape}"
        )
    if np.ptp(states, axis=0).max() == 0:
        raise ValueError("principal components need states that differ; got all the same")
    # "full" is exact and the same on every run.
    return PCA(n_components=2, svd_solver="full").fit(states)


def _check_finite(states: np.ndarray) -> None:
    """Check that there is a place in the plane for every state, of any shape."""
    if not np.isfinite(states).all():
        raise ValueError("principal components need finite states; got NaN or infinity")


def _labels(y: ArrayLike, n: int) -> np.ndarray:
    """Return the labels as an array, after checking that there is one for each of n samples."""
    labels = np.asarray(y)
    if labels.shape != (n,):
        raise ValueError(
            f"needed a label for each sample, shape ({n},); got y of shape {labels.shape}"
        )
    return labels
