"""The clusters of states at a depth, and their animation."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from plot_cases import legend, offsets, shapes

from pydeq import plot

pytestmark = pytest.mark.usefixtures("close_figures")


@pytest.fixture
def clusters(rng):
    """A trajectory (5, 60, 6) of three classes that part over depth, and their labels."""
    y = np.repeat([0, 1, 2], 20)
    centres = rng.normal(size=(3, 6)) * 5
    end = centres[y] + rng.normal(size=(60, 6))
    return np.linspace(0, 1, 5)[:, None, None] * end, y


def pca(states, points):
    """The first two principal components by numpy alone: axes are the right singular vectors."""
    _, _, axes = np.linalg.svd(states - states.mean(axis=0), full_matrices=False)
    return (points - states.mean(axis=0)) @ axes[:2].T


def assert_same_up_to_sign(got, expected):
    for k in range(2):
        sign = np.sign(got[:, k] @ expected[:, k])
        np.testing.assert_allclose(got[:, k], sign * expected[:, k], atol=1e-9)


def test_feature_clusters_are_the_principal_components(clusters):
    trajectory, y = clusters
    states = trajectory[-1]
    ax = plot.feature_clusters(states, y)
    drawn = np.concatenate([offsets(dots) for dots in ax.collections])
    assert_same_up_to_sign(drawn, pca(states, states))  # y is in order, and so are the points
    assert legend(ax) == ["0", "1", "2"]
    assert len(shapes(ax)) == 3
    for text, dots in zip(ax.texts, ax.collections, strict=True):
        assert text.get_text() == dots.get_label()
        np.testing.assert_array_equal(text.get_position(), np.median(offsets(dots), axis=0))
    variances = np.linalg.svd(states - states.mean(axis=0), compute_uv=False) ** 2
    share = variances / variances.sum()
    assert f"({share[0]:.0%} of the variance)" in ax.get_xlabel()
    assert f"({share[1]:.0%} of the variance)" in ax.get_ylabel()


def test_feature_clusters_puts_samples_in_their_class(rng):
    states = rng.normal(size=(30, 4))
    y = rng.choice(["cat", "dog"], 30)
    ax = plot.feature_clusters(states, y)
    expected = offsets(plot.feature_clusters(states, np.zeros(30)).collections[0])
    assert legend(ax) == ["cat", "dog"]
    for name, dots in zip(["cat", "dog"], ax.collections, strict=True):
        np.testing.assert_array_equal(offsets(dots), expected[y == name])


def test_feature_clusters_tells_ten_classes_apart_without_colour(rng):
    ax = plot.feature_clusters(rng.normal(size=(40, 3)), np.arange(40) % 10)
    assert len(shapes(ax)) == 10


@pytest.mark.parametrize(
    ("states", "y", "match"),
    [
        (np.ones(4), np.ones(4), r"needs states \(n, n_state\); got shape \(4,\)"),
        (np.eye(4), np.ones(3), r"shape \(4,\); got y of shape \(3,\)"),
        (np.ones((4, 1)), np.ones(4), r"at least 2 states; got shape \(4, 1\)"),
        (np.ones((1, 4)), np.ones(1), r"at least 2 samples.*got shape \(1, 4\)"),
        (np.full((4, 2), np.nan), np.ones(4), "finite states"),
        (np.ones((4, 2)), np.ones(4), "states that differ"),
    ],
)
def test_feature_clusters_bad_input(states, y, match):
    with pytest.raises(ValueError, match=match):
        plot.feature_clusters(states, y)


def test_animation_is_a_gif_with_a_frame_per_depth(clusters, tmp_path):
    trajectory, y = clusters
    path = tmp_path / "clusters.gif"
    plot.animate_feature_clusters(trajectory, y, path, fps=5)
    with Image.open(path) as gif:
        assert gif.format == "GIF"
        assert gif.n_frames == 5
        assert gif.info["duration"] == 200
        frames = []
        for k in range(gif.n_frames):
            gif.seek(k)
            frames.append(gif.convert("RGB").tobytes())
    assert len(set(frames)) == 5


def test_animation_keeps_the_last_iterates_basis_and_the_view(clusters, tmp_path):
    trajectory, y = clusters
    _, ax = plt.subplots()
    drawn, views = {}, set()

    def record(event):  # a frame may be drawn more than once
        drawn[ax.get_title()] = np.concatenate([offsets(dots) for dots in ax.collections])
        views.add((ax.get_xlim(), ax.get_ylim()))

    ax.figure.canvas.mpl_connect("draw_event", record)
    plot.animate_feature_clusters(trajectory, y, str(tmp_path / "clusters.gif"), ax=ax)
    assert set(drawn) == {f"States by class at depth {k} of 4" for k in range(5)}
    for k, states in enumerate(trajectory):
        points = drawn[f"States by class at depth {k} of 4"]
        assert_same_up_to_sign(points, pca(trajectory[-1], states))
    (((left, right), (bottom, top)),) = views  # one view in all frames, with every point in it
    everything = np.concatenate(list(drawn.values()))
    assert (everything > (left, bottom)).all()
    assert (everything < (right, top)).all()
    for text, dots in zip(ax.texts, ax.collections, strict=True):
        np.testing.assert_array_equal(text.get_position(), np.median(offsets(dots), axis=0))


def test_animation_bad_input(clusters):
    trajectory, y = clusters
    with pytest.raises(ValueError, match=r"animate_feature_clusters needs a trajectory"):
        plot.animate_feature_clusters(trajectory[-1], y)
    with pytest.raises(ValueError, match=r"shape \(60,\); got y of shape \(59,\)"):
        plot.animate_feature_clusters(trajectory, y[1:])
    with pytest.raises(ValueError, match="finite"):
        plot.animate_feature_clusters(np.where(trajectory == 0, np.nan, trajectory), y)
