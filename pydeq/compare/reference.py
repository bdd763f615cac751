"""Results of somebody's own program, most likely in Julia, beside pydeq's on the same inputs.

``pydeq compare --reference FILE`` reads predictions or a loss curve from an NPZ or CSV file.
:func:`read_reference` says what the file holds, :func:`set_beside` has pydeq compute the same,
:func:`verdict` puts the differences into numbers and :func:`draw` into a figure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pydeq import presets
from pydeq.compare.reference_file import read_arrays
from pydeq.plot import style

__all__ = ["Comparison", "Reference", "draw", "read_reference", "set_beside", "verdict"]

NAMES = ("x", "prediction", "loss")
_MAX_EPOCHS = 10_000


@dataclass(frozen=True)
class Reference:
    """What the other program was given and found; at least one of the two results is there.

    Attributes
    ----------
    x : ndarray (n, n_features) or (n_features, n) or None
        Inputs, where there are predictions.
    prediction : ndarray (n, n_outputs) or (n_outputs, n) or None
        What the program predicted for them: values, or logits of classes.
    loss : ndarray (n_epochs,) or None
        The loss before (or of) each epoch of its training.
    """

    x: np.ndarray | None
    prediction: np.ndarray | None
    loss: np.ndarray | None


@dataclass(frozen=True)
class Comparison:
    """Both sides, on the same inputs, samples first.

    Attributes
    ----------
    model : str
        What pydeq's side is.
    x : ndarray (n, n_features) or None
    theirs, ours : ndarray (n, n_outputs) or None
        The predictions of the reference and of pydeq.
    converged : ndarray of bool (n,) or None
        Of pydeq's.
    their_loss, our_loss : ndarray (n_epochs,) or None
        Not always of the same length.
    """

    model: str
    x: np.ndarray | None = None
    theirs: np.ndarray | None = None
    ours: np.ndarray | None = None
    converged: np.ndarray | None = None
    their_loss: np.ndarray | None = None
    our_loss: np.ndarray | None = None


def read_reference(path: Path) -> Reference:
    """Return what a file holds.

    In an NPZ the arrays are named `x`, `prediction` and `loss`. In a CSV these are names of columns
    (`x1`, `x2`, ... and `prediction1`, ... where there are several). A one-dimensional `x` or
    `prediction` has one number a sample. Other names are left alone.

    Raises
    ------
    ValueError
        If nothing of this is there, shapes do not fit, or the file is damaged or larger than it
        may be; says what was needed and what was found.
    """
    found, names = read_arrays(path, NAMES)
    x, prediction, loss = (found.get(name) for name in NAMES)
    if (prediction is None) != (x is None) or (prediction is None and loss is None):
        shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:20])
        raise ValueError(
            f"{path}: needed arrays x and prediction, or loss, or all three; "
            f"found {shown[:300] or 'none'}"
        )
    if loss is not None and loss.size != max(loss.shape):
        raise ValueError(f"{path}: needed loss (n_epochs,); found shape {loss.shape}")
    return Reference(x, prediction, None if loss is None else loss.ravel())


def set_beside(reference: Reference, model: Any = None) -> Comparison:
    """Have pydeq predict for the reference's inputs, and return both sides.

    Parameters
    ----------
    reference : Reference
    model : fitted estimator, optional
        Else :func:`pydeq.presets.double`, fitted to its own data for as many epochs as the loss
        curve has, at most 10,000, or for the post's 1000. Its loss is then the post's, the sum of
        the squares.

    Raises
    ------
    ValueError
        If the reference's shapes are not those of the model.
    """
    name, scale = "the model", 1
    if model is None:
        epochs = (
            {} if reference.loss is None else {"max_iter": min(len(reference.loss), _MAX_EPOCHS)}
        )
        X, y = presets.double_data()
        model, name, scale = presets.double(**epochs).fit(X, y), "presets.double()", len(y)
    curves: dict[str, Any] = {}
    if reference.loss is not None:
        curves = {"their_loss": reference.loss, "our_loss": scale * np.array(model.loss_curve_)}
    if reference.x is None or reference.prediction is None:
        return Comparison(name, **curves)
    spec = model.model_spec_
    x = _samples_first("x", reference.x, spec.n_features)
    theirs = _samples_first("prediction", reference.prediction, spec.n_outputs)
    if len(x) != len(theirs):
        raise ValueError(f"x has {len(x)} samples, prediction {len(theirs)}")
    with np.errstate(over="ignore"):
        inputs = x.astype(model.params_["cell.0.weight"].dtype)
    found = model.equilibrium(inputs)
    return Comparison(name, x, theirs, found.output, found.converged, **curves)


def _samples_first(name: str, values: np.ndarray, width: int) -> np.ndarray:
    """Return an array as (n, width); Julia's programs have (width, n). A square one is not turned.

    A list of numbers is a sample each.
    """
    if values.ndim == 1:
        values = values[:, np.newaxis]
    if values.shape[1] == width:
        return values
    if values.shape[0] == width:
        return values.T
    raise ValueError(
        f"needed {name} of shape (n, {width}), or (n,) where that is 1, or ({width}, n) as Julia "
        f"has it; found {values.shape}"
    )


def verdict(both: Comparison) -> Iterator[str]:
    """Yield lines: how far apart the two are, in a sentence and in numbers."""
    if both.theirs is not None and both.ours is not None and both.converged is not None:
        yield from _verdict(f"{len(both.theirs)} predictions", both.theirs, both.ours)
        yield f"  not converged in pydeq     {(~both.converged).sum()} of {len(both.converged)}"
    if both.their_loss is not None and both.our_loss is not None:
        n = min(len(both.their_loss), len(both.our_loss))
        yield from _verdict(f"loss of {n} epochs", both.their_loss[:n], both.our_loss[:n])


def _verdict(what: str, theirs: np.ndarray, ours: np.ndarray) -> Iterator[str]:
    difference = np.abs(ours - theirs)
    scale = max(float(np.abs(theirs).max()), np.finfo(float).tiny)
    relative = float(difference.max()) / scale
    rms = float(np.sqrt(np.mean(difference**2)))
    yield f"{what}: {_sentence(relative)}"
    yield f"  largest difference         {difference.max():.3g}"
    yield f"  over the largest value     {relative:.1e}"
    yield f"  root mean squared          {rms:.3g}"


def _sentence(relative: float) -> str:
    """Return a difference in words; the bounds are those of rounding, and of a loose tolerance."""
    if relative <= 1e-5:
        return "the same, to single precision"
    if relative <= 1e-2:
        return "they agree, to within the tolerance of a search (1e-2)"
    if relative <= 1e-1:
        return "near, but not the same: compare tolerances, start and data"
    return "they differ"


def draw(both: Comparison, path: Path) -> Path:
    """Draw what there is, predictions and loss, and write the figure to `path`."""
    panels = [
        panel
        for panel, values in ((_draw_predictions, both.theirs), (_draw_losses, both.their_loss))
        if values is not None
    ]
    figure = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
    for panel, ax in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        panel(ax, both)
        ax.legend()
    figure.savefig(path, dpi=120)
    return path


def _draw_predictions(ax: Axes, both: Comparison) -> None:
    """Draw both over x where that is a number; else pydeq's over the reference's."""
    x, theirs, ours = (np.asarray(a) for a in (both.x, both.theirs, both.ours))
    if x.shape[1] == 1:
        x = np.repeat(x, theirs.shape[1], axis=1)
        ax.scatter(
            x, theirs, s=60, marker="s", facecolor="none", edgecolor=style.INK, label="reference"
        )
        ax.scatter(x, ours, s=16, marker="o", color=style.COLORS[0], label=f"pydeq, {both.model}")
        ax.set(title="Predictions", xlabel="x", ylabel="prediction")
        return
    ends = [min(theirs.min(), ours.min()), max(theirs.max(), ours.max())]
    ax.plot(ends, ends, "--", color="0.5", label="the same")
    ax.scatter(theirs, ours, s=12, marker="o", color=style.COLORS[0], label="outputs")
    ax.set(title="Predictions", xlabel="reference", ylabel=f"pydeq, {both.model}")


def _draw_losses(ax: Axes, both: Comparison) -> None:
    theirs, ours = np.asarray(both.their_loss), np.asarray(both.our_loss)
    ax.plot(
        np.arange(1, len(theirs) + 1), theirs, color=style.INK, linewidth=3.5, label="reference"
    )
    label = f"pydeq, {both.model}"
    ax.plot(
        np.arange(1, len(ours) + 1), ours, "--", color=style.COLORS[1], linewidth=1.8, label=label
    )
    if min(theirs.min(), ours.min()) > 0:
        ax.set_yscale("log")
    ax.set(title="Training", xlabel="epoch", ylabel="loss")
