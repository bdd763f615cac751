"""What every program of a comparison is given: weights, samples, batches, the same to the bit."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pydeq import datasets, presets
from pydeq.estimators import DEQClassifier, DEQRegressor, fit_specs
from pydeq.model import (
    Loss,
    ModelSpec,
    OptimizerSpec,
    Params,
    SolverSpec,
    epoch_order,
    iter_batches,
)
from pydeq.training import Data, start_fit

__all__ = ["Task", "double_task", "mnist_task"]


@dataclass(frozen=True)
class Task:
    """What every program is given.

    Attributes
    ----------
    preset : str
    model : ModelSpec
    solver : SolverSpec
    optimizer : OptimizerSpec
    params : Params
        The weights to start from.
    data : Data
    orders : list of ndarray
        Of each epoch, the sample indices in the order in which they are trained on.
    batch_size : int
    x_test : ndarray (n_test, n_features)
    y_test : ndarray (n_test,)
        What is right for them: values, or classes.
    """

    preset: str
    model: ModelSpec
    solver: SolverSpec
    optimizer: OptimizerSpec
    params: Params
    data: Data
    orders: list[np.ndarray]
    batch_size: int
    x_test: np.ndarray
    y_test: np.ndarray

    @property
    def batch_sizes(self) -> np.ndarray:
        """Number of samples of each batch, all epochs in a row, ``(n_batches,)``."""
        return np.array(
            [len(b) for order in self.orders for b in iter_batches(order, self.batch_size)]
        )


def double_task(n_epochs: int | None = None, **overrides: Any) -> Task:
    """Return the task of learning y = 2x; the test samples are -10 to 10.

    Parameters
    ----------
    n_epochs : int, optional
        Instead of the preset's 1000.
    **overrides
        Parameters of :func:`pydeq.presets.double` to set otherwise.
    """
    if n_epochs is not None:
        overrides["max_iter"] = n_epochs
    X, y = presets.double_data()
    x_test = np.arange(-10.0, 11.0)[:, np.newaxis]
    data = Data(X, y[:, np.newaxis], np.ones(len(X)))
    estimator = presets.double(**overrides)
    return _task("double", estimator, "squared_error", data, 1, x_test, 2 * x_test[:, 0])


def mnist_task(
    root: Path, n_samples: int | None = None, n_epochs: int | None = None, **overrides: Any
) -> Task:
    """Return the task of learning MNIST's digits.

    Parameters
    ----------
    root : Path
        Folder of the files; see :func:`pydeq.datasets.load_mnist`.
    n_samples : int, optional
        Train on the first of the samples only.
    n_epochs : int, optional
        Instead of the preset's one.
    **overrides
        Parameters of :func:`pydeq.presets.mnist` to set otherwise.
    """
    if n_epochs is not None:
        overrides["max_iter"] = n_epochs
    X, y, x_test, y_test = datasets.load_mnist(root)
    X, y = X[:n_samples], y[:n_samples]
    data = Data(X, y.astype(np.int32), np.ones(len(X), X.dtype))
    return _task("mnist", presets.mnist(**overrides), "log_loss", data, 10, x_test, y_test)


def _task(
    preset: str,
    estimator: DEQRegressor | DEQClassifier,
    loss: Loss,
    data: Data,
    n_outputs: int,
    x_test: np.ndarray,
    y_test: np.ndarray,
) -> Task:
    """Return the task with the start that the estimator's own fit would have."""
    specs = fit_specs(estimator.get_params(deep=False), loss, len(data), data.x.shape[1], n_outputs)
    start = start_fit(specs.model, estimator.random_state, data.x.dtype)
    shuffle, n_epochs = specs.training.shuffle, specs.training.max_iter
    return Task(
        preset=preset,
        model=specs.model,
        solver=specs.solver,
        optimizer=dataclasses.replace(specs.optimizer, seed=start.seed),
        params=start.params,
        data=data,
        orders=[epoch_order(len(data), shuffle, start.rng) for _ in range(n_epochs)],
        batch_size=specs.training.batch_size,
        x_test=x_test,
        y_test=y_test,
    )
