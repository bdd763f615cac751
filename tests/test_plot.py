import math
import subprocess
import sys
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from plot_cases import legend, offsets, shapes
from sklearn.linear_model import SGDClassifier
from sklearn.neural_network import MLPClassifier

from pydeq import plot
from pydeq.errors import ConvergenceWarning
from pydeq.fixed_points import fixed_point
from pydeq.training import EpochRecord, History

pytestmark = pytest.mark.usefixtures("close_figures")


def line(ax, label):
    (found,) = [line for line in ax.get_lines() if line.get_label() == label]
    return found


def history(n_epochs, loss=1.0, n_failed=0):
    """A history whose loss halves by the epoch."""
    epochs = range(n_epochs)
    return History([EpochRecord(loss / 2**k, 1.0, 7.0, 1e-3, n_failed, 0.1) for k in epochs])


CALLS = {
    "cobweb": lambda ax=None: plot.cobweb(np.cos, fixed_point(np.cos, -1.0), ax=ax),
    "prediction_vs_truth": lambda ax=None: plot.prediction_vs_truth([1, 2], [1.5, 2], ax=ax),
    "training_curve": lambda ax=None: plot.training_curve([3, 2, 1], ax=ax),
    "depth_trajectories": lambda ax=None: plot.depth_trajectories(np.ones((4, 2, 3)), ax=ax),
    "digit": lambda ax=None: plot.digit(np.eye(8), 2, 2, np.full(10, 0.1), ax=ax),
    "digit_grid": lambda ax=None: plot.digit_grid(np.zeros((12, 64)), [1] * 12, [2] * 12, ax=ax),
    "history_curves": lambda ax=None: plot.history_curves({"a": history(3)}, ax=ax),
    "feature_clusters": lambda ax=None: plot.feature_clusters(np.eye(4), [0, 0, 1, 1], ax=ax),
}


@pytest.mark.parametrize("name", CALLS)
def test_makes_a_figure_with_title_and_labels(name):
    ax = CALLS[name]()
    assert all([ax.get_title(), ax.get_xlabel(), ax.get_ylabel() or not ax.get_yticks().size])
    ax.figure.canvas.draw()
    title = ax.title.get_window_extent()
    assert title.x0 >= 0
    assert title.x1 <= ax.figure.bbox.width, "the title is cut off"


@pytest.mark.parametrize("name", CALLS)
def test_draws_on_the_axes_given_and_makes_no_other(name):
    figure, axes = plt.subplots(1, 2)
    assert CALLS[name](axes[1]) is axes[1]
    assert plt.get_fignums() == [figure.number]
    assert figure.axes == list(axes)
    assert not axes[0].has_data()


def test_never_shows_a_figure(monkeypatch):
    def show(*args, **kwargs):
        raise AssertionError("plt.show was called")

    monkeypatch.setattr(plt, "show", show)
    for call in CALLS.values():
        call()


def test_import_leaves_the_backend_alone():
    code = (
        "import matplotlib; matplotlib.use('svg'); import pydeq.plot.figures; "
        "assert matplotlib.get_backend() == 'svg', matplotlib.get_backend()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cobweb_path_alternates_between_curve_and_diagonal():
    result = fixed_point(np.cos, -1.0)
    ax = plot.cobweb(np.cos, result)
    x, y = line(ax, "iterates").get_data()
    assert len(x) == 2 * len(result.trajectory) - 1
    np.testing.assert_array_equal(y[::2], x[::2])  # on the diagonal, at the iterates
    np.testing.assert_array_equal(x[::2], result.trajectory)
    np.testing.assert_allclose(y[1::2], np.cos(x[1::2]), rtol=1e-15)  # on the curve
    x, y = line(ax, "y = f(x)").get_data()
    np.testing.assert_allclose(y, np.cos(x))
    assert x.min() < -1
    assert x.max() > np.max(result.trajectory)
    assert line(ax, "fixed point").get_xdata() == pytest.approx(0.739085, abs=1e-6)
    assert "converged to 0.739085" in ax.get_title()
    assert line(ax, "y = f(x)").get_linestyle() != line(ax, "y = x").get_linestyle()


def test_cobweb_says_when_it_has_not_converged():
    with pytest.warns(ConvergenceWarning):
        result = fixed_point(lambda x: -x, 1.0, max_steps=4)
    ax = plot.cobweb(lambda x: -x, result)
    assert "not converged, at 1 after 4 steps" in ax.get_title()
    assert "last iterate" in legend(ax)
    assert "fixed point" not in legend(ax)


def test_cobweb_leaves_out_where_f_is_not_defined():
    result = fixed_point(math.sqrt, 0.01)  # math.sqrt raises left of 0, where the curve begins
    x, y = line(plot.cobweb(math.sqrt, result), "y = f(x)").get_data()
    assert x[0] < 0
    np.testing.assert_array_equal(np.isnan(y), x < 0)


def test_cobweb_of_a_start_that_is_the_fixed_point():
    ax = plot.cobweb(lambda x: x, fixed_point(lambda x: x, 3.0))
    assert np.ptp(line(ax, "y = x").get_xdata()) > 0


def test_cobweb_needs_a_scalar_map():
    result = fixed_point(np.cos, np.ones(3))
    with pytest.raises(ValueError, match=r"scalar function.*got shape \(\d+, 3\)"):
        plot.cobweb(np.cos, result)


def test_prediction_vs_truth_points_and_error():
    ax = plot.prediction_vs_truth([1, 2, 3], [1, 2, 6])
    np.testing.assert_array_equal(offsets(ax.collections[0]), [[1, 1], [2, 2], [3, 6]])
    np.testing.assert_array_equal(line(ax, "prediction = truth").get_xydata(), [[1, 1], [6, 6]])
    assert f"{math.sqrt(3):.3g}" in ax.get_title()


def test_prediction_vs_truth_has_a_marker_per_output(rng):
    true, predicted = rng.normal(size=(2, 7, 3))
    ax = plot.prediction_vs_truth(true, predicted)
    assert legend(ax)[1:] == ["output 0", "output 1", "output 2"]
    for k, dots in enumerate(ax.collections):
        np.testing.assert_array_equal(offsets(dots), np.column_stack([true[:, k], predicted[:, k]]))
    assert len(shapes(ax)) == 3


@pytest.mark.parametrize(
    ("true", "predicted"), [((3,), (4,)), ((3, 1), (3,)), ((0,), (0,)), ((2, 2, 2), (2, 2, 2))]
)
def test_prediction_vs_truth_bad_shapes(true, predicted):
    with pytest.raises(ValueError, match="needs y_true and y_pred of one shape") as caught:
        plot.prediction_vs_truth(np.ones(true), np.ones(predicted))
    assert f"got {true} and {predicted}" in str(caught.value)


@pytest.mark.parametrize(
    "losses",
    [[4.0, 2.0, 1.0], SimpleNamespace(loss=[4.0, 2.0, 1.0]),
     SimpleNamespace(loss="log_loss", loss_curve_=[4.0, 2.0, 1.0])],
    ids=["sequence", "history", "estimator"],
)  # fmt: skip
def test_training_curve_takes_losses_history_or_estimator(losses):
    ax = plot.training_curve(losses)
    np.testing.assert_array_equal(ax.get_lines()[0].get_xydata(), [[1, 4], [2, 2], [3, 1]])
    assert ax.get_yscale() == "log"
    assert "loss 1 at the end" in ax.get_title()


def test_training_curve_of_a_real_estimator():
    stops_early = MLPClassifier(tol=10, n_iter_no_change=3, random_state=0)
    estimator = stops_early.fit([[0], [1]], [0, 1])
    losses = plot.training_curve(estimator).get_lines()[0].get_ydata()
    assert len(losses) > 2
    np.testing.assert_array_equal(losses, estimator.loss_curve_)


def test_training_curve_with_losses_that_are_not_positive_is_linear():
    ax = plot.training_curve([1.0, np.nan, 0.0, -1.0])
    assert ax.get_yscale() == "linear"
    assert "loss -1 at the end" in ax.get_title()


@pytest.mark.parametrize("losses", [[], [np.nan, np.nan], [[1.0, 2.0]]])
def test_training_curve_bad_losses(losses):
    with pytest.raises(ValueError, match="needs a sequence of losses"):
        plot.training_curve(losses)


def test_training_curve_of_an_unfitted_estimator():
    with pytest.raises(ValueError, match="SGDClassifier without loss_curve_: fit it first"):
        plot.training_curve(SGDClassifier())


def test_depth_trajectories_lines(rng):
    u = rng.normal(size=(7, 3, 2))
    ax = plot.depth_trajectories(u)
    assert len(ax.get_lines()) == 6
    for k, drawn in enumerate(ax.get_lines()):
        np.testing.assert_array_equal(drawn.get_xdata(), range(7))
        np.testing.assert_array_equal(drawn.get_ydata(), u[:, k // 2, k % 2])
    assert legend(ax) == ["sample 0", "sample 1", "sample 2"]
    assert "(3 samples, 2 states)" in ax.get_title()
    # Without colour: the same style within a sample, another in each sample.
    styles = [(drawn.get_linestyle(), drawn.get_marker()) for drawn in ax.get_lines()]
    assert styles[0::2] == styles[1::2]
    assert len(set(styles)) == 3


def test_depth_trajectories_says_what_it_leaves_out(rng):
    ax = plot.depth_trajectories(rng.normal(size=(4, 128, 100)))
    assert len(ax.get_lines()) == 10 * 5
    assert "(10 of 128 samples, 5 of 100 states)" in ax.get_title()
    assert len({drawn.get_marker() for drawn in ax.get_lines()}) == 10


@pytest.mark.parametrize("shape", [(5, 3), (5, 0, 2), (0, 2, 2)])
def test_depth_trajectories_bad_shapes(shape):
    with pytest.raises(ValueError, match=r"trajectory \(depth \+ 1, n, n_state\)") as caught:
        plot.depth_trajectories(np.ones(shape))
    assert f"got shape {shape}" in str(caught.value)


@pytest.mark.parametrize("shape", [(784,), (64,), (28, 28), (1,)])
def test_digit_image(shape, rng):
    pixels = rng.random(shape)
    ax = plot.digit(pixels, 2, 7)
    side = math.isqrt(pixels.size)
    np.testing.assert_array_equal(ax.images[0].get_array(), pixels.reshape(side, side))
    assert ax.get_title() == "prediction: 2 / true digit: 7"
    assert ax.child_axes == []
    # Ink is dark: the largest value is black.
    assert ax.images[0].get_cmap()(1.0)[:3] == (0, 0, 0)


def test_digit_bars_mark_the_prediction():
    proba = np.array([0.05, 0.05, 0.85, 0.04, 0.01, 0, 0, 0, 0, 0])
    ax = plot.digit(np.eye(8), np.int64(2), np.int64(2), proba)
    assert ax.get_title() == "prediction: 2 / true digit: 2"
    (bars,) = ax.child_axes
    np.testing.assert_array_equal([bar.get_width() for bar in bars.patches], proba)
    assert [tick.get_text() for tick in bars.get_yticklabels()] == list("0123456789")
    assert [k for k, bar in enumerate(bars.patches) if bar.get_hatch()] == [2]
    assert bars.patches[2].get_facecolor() != to_rgba("0.8") == bars.patches[1].get_facecolor()
    assert [text.get_text() for text in bars.texts] == ["0.05", "0.05", "0.85", "0.04", "0.01"]
    low, high = bars.get_ylim()
    assert low > high, "class 0 is on top"
    assert all([bars.get_title(), bars.get_xlabel(), bars.get_ylabel()])


def test_digit_bars_lie_within_the_figure():
    ax = plot.digit(np.eye(28), 1, 1, np.full(10, 0.1))
    ax.figure.canvas.draw()
    box = ax.child_axes[0].get_tightbbox()
    assert box.x1 <= ax.figure.bbox.width
    assert box.x0 > ax.get_window_extent().x1


@pytest.mark.parametrize("shape", [(783,), (28, 27), (1, 784), (0,), (2, 28, 28)])
def test_digit_bad_image(shape):
    with pytest.raises(ValueError, match="needs a square image") as caught:
        plot.digit(np.ones(shape), 1, 1)
    assert f"got shape {shape}" in str(caught.value)


@pytest.mark.parametrize("proba", [[], [[0.5, 0.5]], [0.5, 1.5], [-0.1, 1], [np.nan, 1]])
def test_digit_bad_probabilities(proba):
    with pytest.raises(ValueError, match=r"proba \(n_classes,\) with values from 0 to 1"):
        plot.digit(np.eye(8), 1, 1, proba)


def test_digit_grid_has_every_image_with_its_labels(rng):
    images = rng.random((45, 64))
    ax = plot.digit_grid(images, np.arange(45), np.arange(45) + 1)
    assert len(ax.get_images()) == 40
    assert "40 of 45" in ax.get_title()
    assert [text.get_text() for text in ax.texts][:2] == ["0 / 1", "1 / 2"]
    np.testing.assert_array_equal(ax.get_images()[11].get_array(), images[11].reshape(8, 8))
    left, _, bottom, top = ax.get_images()[11].get_extent()
    assert (left, top) == (1, 1.3)
    assert bottom > top, "the first row of pixels is on top"


@pytest.mark.parametrize(
    ("images", "labels"),
    [(np.zeros((2, 64)), [1]), (np.zeros((0, 64)), []), (np.zeros((2, 63)), [1, 2]), (3.0, [1])],
)
def test_digit_grid_bad_input(images, labels):
    with pytest.raises(ValueError, match="got shape"):
        plot.digit_grid(images, labels, labels)


def test_history_curves_differ_by_more_than_colour():
    ax = plot.history_curves({"first": history(4), "second": history(3, loss=2.0)})
    first, second = line(ax, "first"), line(ax, "second")
    np.testing.assert_array_equal(first.get_ydata(), [1, 0.5, 0.25, 0.125])
    np.testing.assert_array_equal(second.get_xdata(), [1, 2, 3])
    assert first.get_linestyle() != second.get_linestyle()
    assert first.get_marker() != second.get_marker()
    assert first.get_linewidth() > second.get_linewidth()
    assert ax.get_yscale() == "log"
    assert legend(ax) == ["first", "second"]


def test_history_curves_of_counts_is_linear():
    ax = plot.history_curves({"fit": history(4, n_failed=3)}, "n_failed")
    assert ax.get_yscale() == "linear"
    assert ax.get_ylabel() == "samples not converged"


def test_history_curves_takes_a_fitted_estimator():
    ax = plot.history_curves({"fit": SimpleNamespace(history_=history(2))})
    np.testing.assert_array_equal(line(ax, "fit").get_ydata(), [1, 0.5])


def test_history_curves_knows_every_column():
    for column in EpochRecord.__dataclass_fields__:
        assert plot.history_curves({"fit": history(2)}, column).get_ylabel()


def test_history_curves_bad_input():
    with pytest.raises(ValueError, match=r"column of loss, .*; got 'accuracy'"):
        plot.history_curves({"fit": history(2)}, "accuracy")
    with pytest.raises(ValueError, match="at least one fit"):
        plot.history_curves({"fit": History()})
