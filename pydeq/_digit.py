"""The picture of a digit beside what a model makes of it."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike

from pydeq._figure import COLORS, INK, new_axes

__all__ = ["digit"]


def digit(
    image: ArrayLike,
    prediction: Any,
    truth: Any,
    proba: ArrayLike | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw a digit with what the model says it is, and how sure the model is of each class.

    Parameters
    ----------
    image : array-like (784,), (64,) or (side, side)
        Pixels row by row, the largest being ink.
    prediction, truth : int or str
        The predicted and the true label.
    proba : array-like (n_classes,), optional
        Probabilities of the classes 0, 1, ... in order, drawn as bars beside the image.
    ax : Axes, optional

    Returns
    -------
    Axes
        Of the image; the bars are its only child axes.

    Raises
    ------
    ValueError
        If the image is not square, or `proba` is not a list of probabilities.
    """
    pixels = np.asarray(image)
    side = round(pixels.size**0.5)
    if pixels.ndim not in (1, 2) or pixels.shape not in ((side * side,), (side, side)) or not side:
        raise ValueError(
            "digit needs a square image, (side * side,) or (side, side), such as (784,); "
            f"got shape {pixels.shape}"
        )
    heights = None if proba is None else np.asarray(proba, dtype=float)
    if heights is not None and not (
        heights.ndim == 1 and heights.size and np.all((heights >= 0) & (heights <= 1))
    ):
        raise ValueError(
            "digit needs proba (n_classes,) with values from 0 to 1; "
            f"got shape {heights.shape}, values {heights.ravel()[:10]}"
        )
    ax = new_axes(ax, (4.0, 4.0) if heights is None else (7.4, 4.0))
    ax.imshow(pixels.reshape(side, side), cmap="gray_r", interpolation="nearest")
    ax.set(
        title=f"prediction: {prediction} / true digit: {truth}",
        xlabel="pixel column",
        ylabel="pixel row",
    )
    if heights is not None:
        _probability_bars(ax, heights, str(prediction))
    return ax


def _probability_bars(ax: Axes, proba: np.ndarray, prediction: str) -> None:
    """Draw class probabilities as bars to the right of `ax`, the predicted class hatched."""
    ax.set_anchor("W")  # the bars hang over the right edge
    bars_ax = ax.inset_axes((1.18, 0.0, 0.8, 1.0))
    bars = bars_ax.barh(range(len(proba)), proba, color="0.8", edgecolor=INK, linewidth=0.8)
    for k, (bar, p) in enumerate(zip(bars, proba, strict=True)):
        if str(k) == prediction:
            bar.set(facecolor=COLORS[0], hatch="///")
        if p >= 0.005:
            # A long bar has its number inside, where the axes have not ended.
            inside = p > 0.8
            text = bars_ax.annotate(
                f"{p:.2f}",
                (p, k),
                xytext=(-4 if inside else 4, 0),
                textcoords="offset points",
                ha="right" if inside else "left",
                va="center",
                fontsize="small",
            )
            text.set_path_effects([withStroke(linewidth=3, foreground="white")])
    bars_ax.set_yticks(range(len(proba)))
    bars_ax.invert_yaxis()
    bars_ax.set(xlim=(0, 1), title="class probabilities", xlabel="probability", ylabel="class")
    bars_ax.spines[["top", "right"]].set_visible(False)
