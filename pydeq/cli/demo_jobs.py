"""The jobs behind ``pydeq demo``: each goes from its data to a figure and says what it found.

Each returns the path of its figure. Text goes to standard output, progress bars to standard error.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pydeq import datasets, plot, presets
from pydeq.engines import EngineName
from pydeq.estimators import DEQClassifier, DEQRegressor
from pydeq.fixed_points import fixed_point
from pydeq.model import softmax

__all__ = ["cos", "digits", "double", "mnist"]


def cos(out: Path) -> Path:
    """Find the fixed point of the cosine from -1, and draw the way there as a cobweb."""
    _make_folder(out)
    result = fixed_point(np.cos, -1.0)
    print(
        f"cos x = x at {result.value:.9f}: {result.n_evals} evaluations, residual "
        f"{result.residual:.1e}; each step is {result.contraction_rate:.3f} times the last"
    )
    figure, ax = _figure(5.4, 5.0)
    plot.cobweb(np.cos, result, ax=ax)
    return _write(figure, out / "cos.png")


def double(
    out: Path, *, engine: EngineName = "auto", seed: int | None = None, **overrides: Any
) -> Path:
    """Learn y = 2x from ten points and draw predictions over truth; `overrides` the preset."""
    _make_folder(out)
    model = presets.double(engine=engine, verbose=True, **_seed(seed), **overrides)
    print("Learning y = 2x from x = 1 ... 10, with a cell 1 -> 5 -> 1 without an activation.")
    _fit(model, *presets.double_data())
    X = np.arange(-10.0, 11.0)[:, np.newaxis]
    found = model.equilibrium(X)
    y, ok = found.output[:, 0], found.converged
    if not ok.any():
        raise ValueError(
            "No sample has an equilibrium, so there is no prediction to draw. One start in "
            "eleven has a cell whose slope is above 1, and so none: try another --seed."
        )
    at = int(np.argmin(np.abs(X[:, 0] + 5)))
    if ok[at]:
        print(f"prediction for -5: {y[at]:.4f} / truth: -10")
    else:
        print("prediction for -5: none, no equilibrium was found / truth: -10; try another --seed")
    figure, ax = _figure(5.4, 5.0)
    plot.prediction_vs_truth(2 * X[ok, 0], y[ok], ax=ax)
    ax.axvspan(2, 20, color="0.92", zorder=0, label="trained on these")
    ax.legend(loc="upper left")
    return _write(figure, out / "double.png")


def digits(
    out: Path, *, engine: EngineName = "auto", seed: int | None = None, **overrides: Any
) -> Path:
    """Learn scikit-learn's 8 x 8 digits and draw one; `overrides` are the classifier's."""
    _make_folder(out)
    X, y, X_test, y_test = datasets.load_digits()
    settings = {"max_iter": 30, "random_state": 0, **_seed(seed)}
    model = DEQClassifier(**{**settings, **overrides}, engine=engine, verbose=True)
    print(f"Learning to read digits from {len(y):,} images of 8 x 8 pixels.")
    _fit(model, X, y)
    return _show_digit(model, X_test, y_test, out / "digits.png")


def mnist(
    out: Path,
    data: Path,
    *,
    engine: EngineName = "auto",
    seed: int | None = None,
    reltol: float | None = None,
) -> Path:
    """Train the preset `mnist` on the files under `data` and draw a digit.

    Parameters
    ----------
    out, data : Path
        Folder of the figure; folder of the MNIST files.
    engine : {"auto", "jax", "julia"}
    seed : int, optional
    reltol : float, optional
        Tolerance of the equilibria, the preset's `abstol` and `reltol`.
    """
    _make_folder(out)
    X, y, X_test, y_test = datasets.load_mnist(data)
    tolerance = {} if reltol is None else {"abstol": reltol, "reltol": reltol}
    model = presets.mnist(engine=engine, verbose=True, **tolerance, **_seed(seed))
    print(
        f"Learning to read digits from {len(y):,} images of 28 x 28 pixels, as in the blog post: "
        f"one epoch, equilibria to {model.reltol:g}."
    )
    if model.reltol > 1e-2:
        print(
            "At equilibria this loose (the post's own tolerance is 0.1) the gradients are off, and "
            "the cell,\nwhich nothing holds stable, may lose its equilibrium while it trains. The "
            "cure is `--reltol 1e-3`."
        )
    _fit(model, X, y)
    n_failed = sum(model.history_.n_failed)
    print(f"training samples that found no equilibrium: {n_failed:,} of {len(y):,}")
    return _show_digit(model, X_test, y_test, out / "mnist.png")


def _fit(model: DEQRegressor | DEQClassifier, X: np.ndarray, y: np.ndarray) -> None:
    """Fit the model; Ctrl-C is an answer too, as long as there is an epoch to show."""
    model.fit(X, y)
    if not model.n_iter_:
        raise KeyboardInterrupt
    history = model.history_
    print(f"epochs: {len(history)}, {sum(history.seconds):.1f} s, engine: {model.engine_}")


def _show_digit(model: DEQClassifier, X: np.ndarray, y: np.ndarray, path: Path) -> Path:
    """Print how the model does on test samples, and draw what it makes of the first 2 in them."""
    found = model.equilibrium(X)
    predictions = model.classes_[found.output.argmax(axis=1)]
    n_converged = int(found.converged.sum())
    print(f"test accuracy: {np.mean(predictions == y):.4f}")
    print(f"converged: {n_converged:,} of {len(y):,} test samples ({n_converged / len(y):.2%})")
    chosen = int(np.argmax(y == 2))
    print(f"prediction: {predictions[chosen]} / true digit: {y[chosen]}")
    figure, ax = _figure(7.4, 4.0)
    proba = softmax(found.output[chosen])
    plot.digit(X[chosen], predictions[chosen], y[chosen], proba, ax=ax)
    return _write(figure, path)


def _seed(seed: int | None) -> dict[str, int]:
    """Return the parameter to set, or none: the default is the model's own."""
    return {} if seed is None else {"random_state": seed}


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    """Return a figure, inches wide and high, that needs no display, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _make_folder(out: Path) -> None:
    """Make the folder, and find out before anything is trained whether it can be written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OSError(f"No figure can be written to the folder {out}: {error.strerror}") from error


def _write(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    print(f"figure: {path}")
    return path
