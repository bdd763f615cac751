"""What the tests of the engines' contract (``test_contract_*.py``) share: small models, sessions.

Every engine is held to the contract of ``pydeq.engines.base``, by value against the oracle; the
fixture `engine` (``conftest.py``) has them all. The cases are chosen to cover every setting and the
pairs that can disturb each other, not their full product: an engine may compile for each of them.
"""

import dataclasses

import numpy as np
import pytest
from helpers import (
    random_batch,
    random_params,
    tight,
)
from oracle import OracleEngine

from pydeq.engines.base import check_supported
from pydeq.model import SOLVERS, ModelSpec, OptimizerSpec

MODEL = ModelSpec(n_features=3, n_outputs=2, n_state=6, hidden_layer_sizes=(7,))
OPTIMIZER = OptimizerSpec(alpha=0.1)
ORACLE = OracleEngine()

# f(s) = a relu(s) - b relu(-s): the slope is a for s > 0 and b for s < 0. With a > 1 > b, inputs
# above 0 have no equilibrium, while z* = b x / (1 - b) for those below.
TWO_SLOPES = ModelSpec(1, 1, None, (2,), activation="relu")


def two_slopes(above, below, dtype="float64"):
    params = {
        "cell.0.weight": [[1.0, -1.0]],
        "cell.0.bias": [0.0, 0.0],
        "cell.1.weight": [[above], [-below]],
        "cell.1.bias": [0.0],
    }
    return {name: np.array(value, dtype) for name, value in params.items()}


def small(**changes):
    return dataclasses.replace(MODEL, **changes)


MONOTONE = small(stability="monotone", hidden_layer_sizes=())
WITHOUT_SPLITTING = [name for name in SOLVERS if name != "peaceman_rachford"]


def model_for(solver):
    """Return a small model that the solver can solve."""
    return MONOTONE if solver == "peaceman_rachford" else MODEL


def open_session(engine, model, solver, optimizer, params, optimizer_state=None):
    """Open a session, or skip where the engine says that it has not what that takes."""
    try:
        check_supported(type(engine), model, solver)
    except ValueError as reason:
        pytest.skip(str(reason))
    return engine.open(model, solver, optimizer, params, optimizer_state)


def one_easy_sample(model=MODEL):
    """Weights without biases and a batch whose sample 3, x = 0, starts at its equilibrium, 0."""
    params = random_params(model, scale=1.0)
    params = {n: np.zeros_like(v) if n.endswith(".bias") else v for n, v in params.items()}
    x, target, weight = random_batch(model, OPTIMIZER)
    x[3] = 0
    return params, (x, target, weight)


def meets_stopping_rule(z, fz, solver):
    """The rule of SolverSpec; what is not finite does not meet it."""
    with np.errstate(all="ignore"):
        gap, size = np.abs(fz - z).max(axis=1), np.abs(fz).max(axis=1)
        return np.isfinite(gap) & ((gap <= solver.abstol) | (gap <= solver.reltol * size))


# --- training ---

TRAINING = {
    "adam": ({}, {}, {"learning_rate": 0.02}, 0.6, "float64"),
    "contractive": (
        {"stability": "contractive"},
        {"name": "anderson"},
        {"loss": "log_loss", "learning_rate": 0.02},
        3.0,
        "float64",
    ),
    "no encoder": (
        {"n_state": None, "n_outputs": 3},
        {"name": "fixed_point"},
        {"learning_rate": 0.02},
        0.6,
        "float64",
    ),
    "jacobian, frozen encoder": (
        {"stability": "jacobian"},
        {"name": "newton"},
        {"learning_rate": 0.02, "jacobian_penalty": 0.7, "seed": 5, "train_encoder": False},
        0.6,
        "float64",
    ),
    "monotone": (
        {"stability": "monotone", "hidden_layer_sizes": ()},
        {"name": "peaceman_rachford"},
        {"learning_rate": 0.02},
        0.6,
        "float64",
    ),
    "float32": ({}, {}, {"learning_rate": 0.02}, 0.6, "float32"),
}


def training_case(name, n=20):
    model_changes, solver_changes, optimizer_changes, scale, dtype = TRAINING[name]
    model = small(**model_changes)
    optimizer = dataclasses.replace(OPTIMIZER, **optimizer_changes)
    params = random_params(model, dtype=dtype, scale=scale)
    data = random_batch(model, optimizer, n=n, dtype=dtype)
    return (model, tight(dtype, **solver_changes), optimizer, params), data, dtype


def orders(n, n_epochs=3):
    rng = np.random.default_rng(7)
    return [rng.permutation(n) for _ in range(n_epochs)]


def train(engine, args, data, epochs, batch_size=8, optimizer_state=None):
    """Open a session, train it, return it and its reports."""
    session = open_session(engine, *args, optimizer_state)
    session.load_data(*data)
    return session, [session.train_epoch(order, batch_size) for order in epochs]
