"""The model's maps as pure functions of JAX arrays: encoder, cell, decoder, losses."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from pydeq.model import ModelSpec

__all__ = [
    "Acting",
    "Layers",
    "activation",
    "cell",
    "cell_layers",
    "decode",
    "encode",
    "loss_value",
    "positive",
]

Layers = tuple[tuple[jax.Array, jax.Array], ...]
"""Weight (n_in, n_out) and bias (n_out,) of each layer of the cell, in order."""

Acting = dict[str, jax.Array]
"""The parameters as they act, by name: see :func:`pydeq.engines.jax.layers.act`."""

_ACTIVATIONS = {
    "identity": lambda v: v,
    "logistic": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
}


def activation(model: ModelSpec) -> Callable[[jax.Array], jax.Array]:
    """Return the activation of the hidden layers, or of the monotone cell."""
    return _ACTIVATIONS[model.activation]


def encode(model: ModelSpec, params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """Return h ``(n, n_state)`` of the samples `x` ``(n, n_features)``."""
    if model.n_state is None:
        return x
    return x @ params["encoder.weight"] + params["encoder.bias"]


def decode(model: ModelSpec, params: Mapping[str, jax.Array], z: jax.Array) -> jax.Array:
    """Return the raw output ``(n, n_outputs)`` of the states `z` ``(n, n_state)``."""
    if model.n_state is None:
        return z
    return z @ params["decoder.weight"] + params["decoder.bias"]


def cell_layers(model: ModelSpec, acting: Mapping[str, jax.Array]) -> Layers:
    """Return the cell's layers among what acts."""
    n_layers = len(model.cell_widths) - 1
    return tuple((acting[f"cell.{i}.weight"], acting[f"cell.{i}.bias"]) for i in range(n_layers))


def cell(model: ModelSpec, layers: Layers, u: jax.Array, h: jax.Array) -> jax.Array:
    """Return f(u, h) ``(n, n_state)``: see :class:`pydeq.model.spec.ModelSpec`."""
    act = activation(model)
    *hidden, (weight, bias) = layers
    if model.stability == "monotone":
        return act(u @ weight + h + bias)
    v = u + h
    for hidden_weight, hidden_bias in hidden:
        v = act(v @ hidden_weight + hidden_bias)
    return v @ weight + bias


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
