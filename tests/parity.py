"""What engines are compared by: models, batches and a training, the same wherever they run."""

import dataclasses

import numpy as np
from architecture_cases import MODELS, model_of
from helpers import random_batch, random_params, tight

from pydeq.datasets import load_digits
from pydeq.layers import Activation, Branches, Conv, Dense, Flatten, Fuse, Residual
from pydeq.model import ModelSpec, OptimizerSpec, SolverSpec, epoch_order, init_params

# Largest differences between engines, relative to the size of what is compared.
STATE = {"float64": 1e-8, "float32": 1e-5}
GRADIENT = {"float64": 1e-6, "float32": 1e-4}
LOSS_CURVE = 1e-3
N_STEPS = 100

_MODEL = ModelSpec(n_features=5, n_outputs=3, n_state=20, hidden_layer_sizes=(30,))

_MONOTONE = {"stability": "monotone", "hidden_layer_sizes": ()}


def _fields(model):
    return {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}


_LAYERS = {name: _fields(model) for name, model in MODELS.items()}
_MONOTONE_CONVS = {
    padding: _fields(model_of((Conv(4, 3, padding=padding), Activation("tanh")), "monotone"))
    for padding in ("zero", "circular")
}
_SCALES = _fields(
    ModelSpec(
        15,
        3,
        48,
        (),
        input_shape=(1, 5, 3),
        encoder=(Branches([[Conv(2)], [Conv(3, stride=2), Activation("tanh")]]),),
        cell=(Branches([[Conv(2), Activation("tanh")], [Residual(Conv(3, 1))]]), Fuse()),
        decoder=(Flatten(), Dense(3)),
    )
)
_GUESS = (Dense(7), Activation("tanh"), Dense(20))
_FIXED = {"fixed_depth": 3, "fixed_depth_epochs": 1}

# name: changes of the model, the solver, the optimiser; scale of the cell's weights; dtype
CASES = {
    "tsit5": ({}, {}, {}, 0.6, "float64"),
    "51 states": ({"n_state": 51}, {}, {}, 0.6, "float64"),
    "anderson, relu": (
        {"hidden_layer_sizes": (12, 9), "activation": "relu"},
        {"name": "anderson"},
        {"loss": "log_loss"},
        0.6,
        "float64",
    ),
    "fixed point, affine": (
        {"hidden_layer_sizes": ()},
        {"name": "fixed_point"},
        {},
        0.6,
        "float64",
    ),
    "no encoder": ({"n_state": None, "n_features": 3}, {}, {}, 0.6, "float64"),
    "contractive": ({"stability": "contractive"}, {}, {"alpha": 0.1}, 3.0, "float64"),
    "jacobian": (
        {"stability": "jacobian"},
        {},
        {"jacobian_penalty": 0.7, "loss": "log_loss"},
        0.6,
        "float64",
    ),
    "newton, logistic": ({"activation": "logistic"}, {"name": "newton"}, {}, 0.6, "float64"),
    "broyden": ({}, {"name": "broyden"}, {}, 0.6, "float64"),
    "monotone, peaceman_rachford": (_MONOTONE, {"name": "peaceman_rachford"}, {}, 0.6, "float64"),
    "monotone, anderson, relu": (
        {**_MONOTONE, "activation": "relu"},
        {"name": "anderson"},
        {"alpha": 0.1},
        0.6,
        "float64",
    ),
    "jfb": ({}, {"adjoint": "jfb"}, {}, 0.6, "float64"),
    "monotone, jfb": (_MONOTONE, {"adjoint": "jfb"}, {"loss": "log_loss"}, 0.6, "float64"),
    "unrolled, tsit5": ({}, {"adjoint": "unrolled"}, {}, 0.6, "float64"),
    "unrolled, anderson": ({}, {"name": "anderson", "adjoint": "unrolled"}, {}, 0.6, "float64"),
    "unrolled, broyden": ({}, {"name": "broyden", "adjoint": "unrolled"}, {}, 0.6, "float64"),
    "unrolled, fixed_point, contractive": (
        {"stability": "contractive"},
        {"name": "fixed_point", "adjoint": "unrolled"},
        {},
        3.0,
        "float64",
    ),
    "unrolled, monotone, peaceman_rachford": (
        _MONOTONE,
        {"name": "peaceman_rachford", "adjoint": "unrolled"},
        {},
        0.6,
        "float64",
    ),
    "finite horizon": ({"horizon": 2.0}, {}, {}, 0.6, "float64"),
    "layers, convolutions": (_LAYERS["convolutions"], {"name": "anderson"}, {}, 0.6, "float64"),
    "layers, residual, jacobian": (
        _LAYERS["residual"],
        {"name": "fixed_point"},
        {"jacobian_penalty": 0.7, "loss": "log_loss"},
        0.3,
        "float64",
    ),
    "layers, contractive": (
        _LAYERS["contractive"],
        {"name": "anderson"},
        {"alpha": 0.1},
        3.0,
        "float64",
    ),
    "layers, rows, broyden": (_LAYERS["rows"], {"name": "broyden"}, {}, 0.3, "float64"),
    "layers, dense, newton": (_LAYERS["dense"], {"name": "newton"}, {}, 3.0, "float64"),
    "layers, convolutions, jfb": (
        _LAYERS["convolutions"],
        {"name": "anderson", "adjoint": "jfb"},
        {},
        0.6,
        "float64",
    ),
    "layers, contractive, unrolled": (
        _LAYERS["contractive"],
        {"name": "anderson", "adjoint": "unrolled"},
        {},
        3.0,
        "float64",
    ),
    "layers before a monotone cell": (
        {**_LAYERS["rows"], **_MONOTONE, "cell": None},
        {"name": "peaceman_rachford"},
        {},
        0.6,
        "float64",
    ),
    "layers, finite horizon": (
        {**_LAYERS["convolutions"], "horizon": 2.0},
        {},
        {},
        0.3,
        "float64",
    ),
    "several resolutions": (_SCALES, {"name": "anderson"}, {}, 0.3, "float64"),
    "several resolutions, contractive": (
        {**_SCALES, "stability": "contractive"},
        {"name": "newton"},
        {"loss": "log_loss"},
        2.0,
        "float64",
    ),
    "several resolutions, jacobian": (
        {**_SCALES, "stability": "jacobian"},
        # A state's error is 10^4 times as large in the gradient: searched to 1e-11, it has no room.
        {"name": "anderson", "abstol": 1e-12, "reltol": 1e-12},
        {"jacobian_penalty": 0.7},
        0.2,
        "float64",
    ),
    "start from zero": ({"init": "zero"}, {"name": "anderson"}, {}, 0.6, "float64"),
    "start from layers": (
        {"init": _GUESS, "stability": "contractive"},
        {"name": "anderson"},
        {"init_penalty": 0.7, "loss": "log_loss"},
        3.0,
        "float64",
    ),
    "start from layers, unrolled": (
        {"init": _GUESS},
        {"name": "fixed_point", "adjoint": "unrolled"},
        {"init_penalty": 0.7},
        0.6,
        "float64",
    ),
    "start from the encoder, finite horizon": (
        {"init": (), "horizon": 2.0},
        {},
        {},
        0.6,
        "float64",
    ),
    "start from layers, convolutions": (
        {**_LAYERS["convolutions"], "init": (Conv(4, 1),)},
        {"name": "anderson"},
        {"init_penalty": 0.7},
        0.6,
        "float64",
    ),
    "fixed depth": ({}, _FIXED, {"alpha": 0.1}, 0.6, "float64"),
    "fixed depth, from layers, jacobian": (
        {"init": _GUESS, "stability": "jacobian"},
        _FIXED,
        {"init_penalty": 0.7, "jacobian_penalty": 0.7},
        0.6,
        "float64",
    ),
    "fixed depth, layers, contractive": (
        _LAYERS["contractive"],
        {"name": "anderson", **_FIXED},
        {},
        3.0,
        "float64",
    ),
    "fixed depth, monotone": (_MONOTONE, _FIXED, {}, 0.6, "float64"),
    "monotone convolution, peaceman_rachford": (
        _MONOTONE_CONVS["zero"],
        {"name": "peaceman_rachford"},
        {},
        0.6,
        "float64",
    ),
    "monotone convolution on a torus, newton": (
        _MONOTONE_CONVS["circular"],
        {"name": "newton"},
        {"loss": "log_loss", "alpha": 0.1},
        0.6,
        "float64",
    ),
    "monotone convolution on a torus, jfb": (
        _MONOTONE_CONVS["circular"],
        {"name": "peaceman_rachford", "adjoint": "jfb"},
        {},
        0.6,
        "float64",
    ),
    "monotone convolution, fixed depth": (
        _MONOTONE_CONVS["zero"],
        {"name": "anderson", **_FIXED},
        {},
        0.6,
        "float64",
    ),
    "float32, monotone convolution": (
        _MONOTONE_CONVS["zero"],
        {"name": "anderson"},
        {},
        0.6,
        "float32",
    ),
    "float32, layers, contractive": (
        _LAYERS["contractive"],
        {"name": "anderson"},
        {},
        3.0,
        "float32",
    ),
    "float32, 51 states": ({"n_state": 51}, {}, {"loss": "log_loss"}, 0.6, "float32"),
    "float32, monotone, broyden": (_MONOTONE, {"name": "broyden"}, {}, 0.6, "float32"),
    "float32, contractive": ({"stability": "contractive"}, {}, {}, 3.0, "float32"),
}


def case(name):
    """Return the arguments of ``open``, and a batch."""
    model_changes, solver_changes, optimizer_changes, scale, dtype = CASES[name]
    model = dataclasses.replace(_MODEL, **model_changes)
    optimizer = dataclasses.replace(OptimizerSpec(), **optimizer_changes)
    params = random_params(model, dtype=dtype, scale=scale)
    solver = tight(dtype, **solver_changes)
    return (model, solver, optimizer, params), random_batch(model, optimizer, dtype=dtype)


def solve(engine, name):
    """Return the state, the output, the loss and its gradient, as named arrays."""
    args, batch = case(name)
    session = engine.open(*args)
    found = session.equilibrium(batch[0])
    loss, gradient = session.loss_and_grad(*batch)
    session.close()
    assert found.converged.all()
    named = {f"gradient.{key}": value for key, value in gradient.items()}
    return {"state": found.state, "output": found.output, "loss": np.array(loss), **named}


def training_case():
    """Return the arguments of ``open``, the data, and N_STEPS batches.

    The model of the preset `mnist`, its equilibria searched to 1e-6, on digits that come with
    scikit-learn, enlarged to MNIST's 28 x 28 pixels.
    """
    X, y, _, _ = load_digits()
    small = X.reshape(-1, 8, 8).repeat(3, axis=1).repeat(3, axis=2)
    x = np.pad(small, ((0, 0), (2, 2), (2, 2))).reshape(len(X), 784).astype(np.float64)
    model = ModelSpec(n_features=784, n_outputs=10, n_state=100, hidden_layer_sizes=(500,))
    solver = SolverSpec(abstol=1e-6, reltol=1e-6)
    optimizer = OptimizerSpec(loss="log_loss", learning_rate=3e-4)
    rng = np.random.default_rng(0)
    params = init_params(model, rng, np.dtype("float64"))
    orders = [epoch_order(len(x), True, rng) for _ in range(3)]
    batches = np.concatenate(orders)[: N_STEPS * 32].reshape(N_STEPS, 32)
    return (model, solver, optimizer, params), (x, y.astype(np.int32), np.ones(len(x))), batches


def train(engine, n_steps=N_STEPS):
    """Return the loss of every step of the training, and the weights after the last."""
    args, data, batches = training_case()
    session = engine.open(*args)
    session.load_data(*data)
    loss = [session.train_epoch(batch, len(batch)).loss for batch in batches[:n_steps]]
    params = session.params()
    session.close()
    return np.array(loss), params
