"""The model's maps as pure functions of JAX arrays: encoder, cell, decoder, losses.

The states and h have their channels last: see :func:`pydeq.engines.jax.forward.channels_last`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pydeq.cell_function import CellFunction
from pydeq.engines.jax.forward import FUNCTIONS, channels_first, channels_last, forward_rows
from pydeq.model import ModelSpec, effective
from pydeq.shapes import Shape, array_shape

__all__ = [
    "Acting",
    "activation",
    "affine",
    "cell",
    "cell_weights",
    "check_function",
    "decode",
    "encode",
    "first_guess",
    "loss_value",
    "positive",
]

Acting = dict[str, jax.Array]
"""The parameters as they act, by name: see :func:`pydeq.engines.jax.layers.act`."""


def activation(model: ModelSpec) -> Callable[[jax.Array], jax.Array]:
    """Return the activation of the monotone cell."""
    return FUNCTIONS[model.activation]


def affine(model: ModelSpec, weights: Mapping[str, jax.Array], u: jax.Array) -> jax.Array:
    """Return W u + b ``(n, n_state)`` of the monotone cell."""
    if model.cell is None:
        return u @ weights["cell.0.weight"] + weights["cell.0.bias"]
    return forward_rows((effective(model.network.cell[0]),), weights, u)


def encode(model: ModelSpec, params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """Return h ``(n, n_state)`` of the samples `x` ``(n, n_features)``."""
    network = model.network
    return forward_rows(network.encoder, params, channels_last(x, network.input_shape))


def decode(model: ModelSpec, params: Mapping[str, jax.Array], z: jax.Array) -> jax.Array:
    """Return the raw output ``(n, n_outputs)`` of the states `z` ``(n, n_state)``."""
    decoder = model.network.decoder
    output = forward_rows(decoder, params, z)
    return channels_first(output, decoder[-1].gives if decoder else model.network.state_shape)


def cell_weights(acting: Mapping[str, jax.Array]) -> Acting:
    """Return what the cell is computed with, among what acts."""
    not_used = ("cell.root", ".slope")
    return {
        name: value
        for name, value in acting.items()
        if name.startswith("cell.") and not name.endswith(not_used)
    }


def cell(model: ModelSpec, weights: Acting, u: jax.Array, h: jax.Array) -> jax.Array:
    """Return f(u, h) ``(n, n_state)``: see :class:`pydeq.model.spec.ModelSpec`."""
    if model.stability == "monotone":
        return activation(model)(affine(model, weights, u) + h)
    if isinstance(model.cell, CellFunction):
        return _function(model.cell, model.network.state_shape, weights, u, h)
    return forward_rows(model.network.cell, weights, u + h)


def _function(
    own: CellFunction, shape: Shape, weights: Acting, u: jax.Array, h: jax.Array
) -> jax.Array:
    """Return f of rows ``(n, n_state)``, each by itself, or of one ``(n_state,)``."""
    function: Any = own.function
    params = {name: weights[f"cell.{name}"] for name in own.params}

    def of_one(u: jax.Array, h: jax.Array) -> jax.Array:
        given = (channels_first(v, shape).reshape(array_shape(shape)) for v in (u, h))
        return channels_last(function(params, *given).ravel(), shape)

    return of_one(u, h) if u.ndim == 1 else jax.vmap(of_one)(u, h)


def check_function(model: ModelSpec, dtype: np.dtype) -> None:
    """Raise ValueError unless a cell that is a function gives a state; it is traced, not run."""
    own, shape = model.cell, array_shape(model.network.state_shape)
    if not isinstance(own, CellFunction):
        return
    function: Any = own.function
    state = jax.ShapeDtypeStruct(shape, dtype)
    params = {name: jax.ShapeDtypeStruct(s, dtype) for name, s in own.shapes.items()}
    given = f"params of shapes {own.shapes}, u {shape} and h {shape}, all {dtype}"
    try:
        made: Any = jax.eval_shape(function, params, state, state)
    except Exception as error:
        raise ValueError(
            f"cell: {own.name} failed, which was given {given}: {type(error).__name__}: {error}"
        ) from error
    found = (getattr(made, "shape", None), getattr(made, "dtype", None))
    if found != (shape, dtype):
        what = type(made).__name__ if found[0] is None else f"shape {found[0]} and {found[1]}"
        raise ValueError(
            f"cell: {own.name} must return an array of the shape and dtype of the state, {shape} "
            f"and {dtype}; it returned {what}, of {given}."
        )


def first_guess(model: ModelSpec, params: Mapping[str, jax.Array], h: jax.Array) -> jax.Array:
    """Return u(0) ``(n, n_state)``: see :class:`pydeq.model.spec.ModelSpec`."""
    if model.init == "cell":
        return cell(model, cell_weights(params), jnp.zeros_like(h), h)
    if model.init == "zero":
        return jnp.zeros_like(h)
    return forward_rows(model.network.init, params, h)


def loss_value(name: str, output: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """Return the loss of a batch; 0 where no weight is. Its twin: :func:`pydeq.model.loss`."""
    if name == "log_loss":
        is_class = target[:, None] == jnp.arange(output.shape[1])
        per_sample = -jnp.where(is_class, jax.nn.log_softmax(output), 0).sum(axis=1)
    else:
        per_sample = ((output - target) ** 2).mean(axis=1)
    return weight @ per_sample / positive(weight.sum())


def positive(total: jax.Array) -> jax.Array:
    """Stand in 1 for a sum of weights that is 0."""
    return jnp.where(total > 0, total, 1)
