"""Figures of equilibria: how they are reached, and what they predict."""

from pydeq.plot import style
from pydeq.plot.clusters import animate_feature_clusters, feature_clusters
from pydeq.plot.digits import digit, digit_grid
from pydeq.plot.figures import cobweb, depth_trajectories, prediction_vs_truth, training_curve
from pydeq.plot.history import history_curves

__all__ = [
    "animate_feature_clusters",
    "cobweb",
    "depth_trajectories",
    "digit",
    "digit_grid",
    "feature_clusters",
    "history_curves",
    "prediction_vs_truth",
    "style",
    "training_curve",
]
