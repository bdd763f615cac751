"""The scikit-learn estimators: what is checked, learned, predicted, saved."""

from pydeq.estimators.checkpoint import Checkpoint
from pydeq.estimators.classifier import DEQClassifier
from pydeq.estimators.loading import load
from pydeq.estimators.parameters import fit_specs
from pydeq.estimators.regressor import DEQRegressor

__all__ = ["Checkpoint", "DEQClassifier", "DEQRegressor", "fit_specs", "load"]
