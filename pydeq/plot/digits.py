"""Pictures of digits beside what a model makes of them."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike

from pydeq.plot.style import COLORS, INK, new_axes

__all__ = ["digit", "digit_grid"]

_A_ROW = 10
_MAX_DIGITS = 40


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

    Examples
    --------
    >>> from pydeq import plot
    >>> from pydeq.datasets import load_digits
    >>> _, _, X_test, y_test = load_digits()
    >>> plot.digit(X_test[0], 2, y_test[0]).get_title()
    'prediction: 2 / true digit: 2'
    """
    pixels = _square(image)
    heights = None if proba is None else np.asarray(proba, dtype=float)
    if heights is not None and not (
        heights.ndim == 1 and heights.size and np.all((heights >= 0) & (heights <= 1))
    ):
        raise ValueError(
            "digit needs proba (n_classes,) with values from 0 to 1; "
            f"got shape {heights.shape}, values {heights.ravel()[:10]}"
        )
    ax = new_axes(ax, (4.0, 4.0) if heights is None else (7.4, 4.0))
    ax.imshow(pixels, cmap="gray_r", interpolation="nearest")
    ax.set(
        title=f"prediction: {prediction} / true digit: {truth}",
        xlabel="pixel column",
        ylabel="pixel row",
    )
    if heights is not None:
        _probability_bars(ax, heights, str(prediction))
    return ax


def digit_grid(
    images: ArrayLike, predictions: ArrayLike, truths: ArrayLike, *, ax: Axes | None = None
) -> Axes:
    """Draw many digits with what the model says they are, such as those it gets wrong.

    At most the first 40 are drawn, ten a row; the title says how many there are.

    Parameters
    ----------
    images : array-like (n, 784), (n, 64) or (n, side, side)
        A digit each, as for `digit`.
    predictions, truths : array-like (n,)
        The predicted and the true labels.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If an image is not square, there are no images, or there are more or fewer labels.

    Examples
    --------
    >>> from pydeq import plot
    >>> from pydeq.datasets import load_digits
    >>> _, _, X_test, y_test = load_digits()
    >>> plot.digit_grid(X_test[:3], [3, 5, 7], y_test[:3]).get_title()
    'Predicted / true digits (3 images)'
    """
    pixels = np.asarray(images)
    predicted, true = np.asarray(predictions), np.asarray(truths)
    n = len(pixels) if pixels.ndim else 0
    if not n or predicted.shape != (n,) or true.shape != (n,):
        raise ValueError(
            "digit_grid needs images (n, side * side) and n predictions and truths, n at least 1; "
            f"got shapes {pixels.shape}, {predicted.shape} and {true.shape}"
        )
    shown = min(n, _MAX_DIGITS)
    n_columns = min(shown, _A_ROW)
    n_rows = -(-shown // n_columns)
    ax = new_axes(ax, (max(0.95 * n_columns, 4.0), 1.2 * n_rows + 0.9))
    for k in range(shown):
        row, column = divmod(k, n_columns)
        _small_digit(ax, pixels[k], column, 1.3 * row, f"{predicted[k]} / {true[k]}")
    count = f"{n}" if shown == n else f"{shown} of {n}"
    ax.set(
        title=f"Predicted / true digits ({count} images)",
        xlabel="above each image: predicted digit / true digit",
        xlim=(-0.05, n_columns),
        ylim=(1.3 * n_rows - 0.2, -0.4),
        xticks=[],
        yticks=[],
    )
    ax.spines[:].set_visible(False)
    return ax


def _small_digit(ax: Axes, image: np.ndarray, left: float, top: float, text: str) -> None:
    """Draw an image 0.9 wide and high with its text above, from its upper left corner."""
    extent = (left, left + 0.9, top + 0.9, top)
    ax.imshow(_square(image), cmap="gray_r", interpolation="nearest", extent=extent)
    ax.text(left + 0.45, top - 0.05, text, ha="center", va="bottom", fontsize="small")


def _square(image: ArrayLike) -> np.ndarray:
    """Return the pixels as (side, side)."""
    pixels = np.asarray(image)
    side = round(pixels.size**0.5)
    if pixels.ndim not in (1, 2) or pixels.shape not in ((side * side,), (side, side)) or not side:
        raise ValueError(
            "digit needs a square image, (side * side,) or (side, side), such as (784,); "
            f"got shape {pixels.shape}"
        )
    return pixels.reshape(side, side)


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
