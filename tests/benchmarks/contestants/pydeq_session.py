"""pydeq on either engine: what `fit` does in an epoch, driven part by part.

Settings are parameters of DEQClassifier, on top of the common cell. ``defaults=True`` takes none of
the common settings: cell, batch size and learning rate are the estimator's own. ``average`` is off
unless said: with it the predictions are those of `fit`, by the moving average of the weights at the
epochs' ends, and stay the same between two ends.
"""

import importlib
import inspect
from functools import partial
from typing import Any, final

import numpy as np

from contestants.task import Task
from contestants.worker import AbstractContestant, Predicted, SkippedError, Trained
from pydeq import DEQClassifier
from pydeq.engines import get_engine
from pydeq.errors import EngineUnavailableError
from pydeq.estimators.parameters import fit_specs
from pydeq.model import Params, init_params, parameter_shapes
from pydeq.model.cell import acting_cell
from pydeq.training.state import Average

COUNTED = 8
"""Batches whose products with the transposed Jacobian are counted after a part of an epoch."""


@final
class Contestant(AbstractContestant):
    """A session of the engine."""

    def __init__(self, task: Task, settings: dict[str, Any]) -> None:
        estimator = _estimator(task, settings)
        try:
            specs = fit_specs(estimator.get_params(), "log_loss", len(task.x), 784, 10)
            engine = get_engine(settings.get("engine", "jax"), "cpu")
        except (ValueError, EngineUnavailableError) as error:
            raise SkippedError(str(error)) from error
        params = task.params
        if parameter_shapes(specs.model) != {k: v.shape for k, v in params.items()}:
            rng = np.random.default_rng(task.seed)
            params = init_params(specs.model, rng, np.dtype("f4"))
        self._model = specs.model
        kind = "monotone" if specs.model.stability == "monotone" else "mlp"
        self.form = f"{kind} {specs.model.activation}"
        self._batch_size = specs.training.batch_size
        self._x, self._target = task.x, task.y.astype(np.int32)
        self._open = partial(engine.open, specs.model, specs.solver, specs.optimizer)
        self._session = self._open(params)
        self._session.load_data(self._x, self._target, np.ones(len(task.x), "f4"))
        self._order = np.arange(0)
        self._n_seen = 0
        self._average = Average()
        self._kept = params if estimator.average else None
        self._count = _products_counter() if engine.name == "jax" else None

    def train(self, order: np.ndarray) -> Trained:
        """See :class:`AbstractContestant`; as :func:`pydeq.training.loop.train` does an epoch."""
        report = self._session.train_epoch(order, self._batch_size)
        params = self._session.params()
        self._n_seen += len(order)
        if self._kept is not None and self._n_seen % len(self._x) == 0:
            self._average = self._average.including(params)
            self._kept = self._average.mean
        self._order = order
        return Trained(report.loss, report.n_evals, np.nan)

    def settle(self, trained: Trained) -> Trained:
        """Count the adjoint's products for the last batches; the report does not have them."""
        if self._count is None:
            return trained
        size = self._batch_size
        whole = len(self._order) // size * size
        batches = np.split(self._order[:whole], max(whole // size, 1))[-COUNTED:]
        means = [self._count(self._session, self._x[i], self._target[i]) for i in batches]
        return Trained(trained.loss, trained.forward, float(np.mean(means)))

    def predict(self, x: np.ndarray) -> Predicted:
        """See :class:`AbstractContestant`."""
        session = self._session if self._kept is None else self._open(self._kept)
        found = session.equilibrium(x)
        return Predicted(found.state, found.output, float(found.n_evals.mean()))

    def weights(self) -> Params:
        """See :class:`AbstractContestant`."""
        params = dict(self._kept or self._session.params())
        cell: Any = acting_cell(self._model, params)
        for i, (weight, bias) in enumerate(zip(cell.weights, cell.biases, strict=True)):
            params[f"cell.{i}.weight"], params[f"cell.{i}.bias"] = weight, bias
        return {name: np.asarray(value, np.float32) for name, value in params.items()}


def _estimator(task: Task, settings: dict[str, Any]) -> DEQClassifier:
    common = {
        "n_state": 100,
        "hidden_layer_sizes": (500,),
        "activation": "tanh",
        "stability": "contractive",
        "alpha": 0.0,
        "learning_rate_init": task.learning_rate,
        "batch_size": task.batch_size,
    }
    settings = {"average": False, **settings}
    if not settings.pop("defaults", False):
        settings = {**common, "reltol": task.reltol, **settings}
    unknown = set(settings) - set(inspect.signature(DEQClassifier).parameters)
    if unknown:
        raise SkippedError(f"this pydeq has no {', '.join(sorted(unknown))}")
    return DEQClassifier(**settings)


def _products_counter():
    """Return a function of (session, x, target): mean products and pullback of the adjoint.

    The step is run as it is written, not compiled, and its linear solver listened to.
    """
    try:
        adjoint: Any = importlib.import_module("pydeq.engines.jax.adjoint")
        compiled: Any = importlib.import_module("pydeq.engines.jax.compiled")
        solve, step = adjoint.solve_linear, compiled.step
    except (ImportError, AttributeError):
        return None
    heard: list[float] = []

    def listening(*args, **kwargs):
        x, n_products = solve(*args, **kwargs)
        heard.append(float(np.mean(n_products)))
        return x, n_products

    def count(session, x: np.ndarray, target: np.ndarray) -> float:
        heard.clear()
        adjoint.solve_linear, compiled.step = listening, step.__wrapped__
        try:
            session.loss_and_grad(x, target, np.ones(len(x), "f4"))
        finally:
            adjoint.solve_linear, compiled.step = solve, step
        return 1 + sum(heard)  # and the pullback to the weights

    return count
