"""The model's maps as pure functions of JAX arrays: encoder, cell, decoder, losses."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from pydeq.model import ModelSpec

__all__ = [
    "Layers",
    "activation",
    "cell",
    "cell_layers",
    "decode",
    "encode",
    "loss_value",
    "weight_penalty",
]

Layers = tuple[tuple[jax.Array, jax.Array], ...]
"""Weight (n_in, n_out) and bias (n_out,) of each layer of the cell, in order."""

GRAM_ITERATIONS = 5

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


def cell_layers(model: ModelSpec, params: Mapping[str, jax.Array]) -> Layers:
    """Return the cell's layers as they act: scaled if contractive, composed if monotone."""
    n_layers = len(model.hidden_layer_sizes) + 1
    weights = [params[f"cell.{i}.weight"] for i in range(n_layers)]
    if model.stability == "contractive":
        log_product = sum(_log_spectral_norm_bound(w) for w in weights)
        log_scale = jnp.minimum(0.0, (jnp.log(model.contraction) - log_product) / n_layers)
        weights = [w * jnp.exp(log_scale) for w in weights]
    elif model.stability == "monotone":
        (a,), b = weights, params["cell.0.skew"]
        weights = [b - b.T - a @ a.T]
    return tuple((w, params[f"cell.{i}.bias"]) for i, w in enumerate(weights))


@jax.custom_vjp
def _log_spectral_norm_bound(weight: jax.Array) -> jax.Array:
    """Log of an upper bound of ``||weight||_2``, by Gram iteration.

    Delattre et al. 2023, algorithm 1: ``||G^k||_F ** (1 / 2k)`` with k a power of two bounds the
    spectral norm from above and converges to it superlinearly; it is deterministic and
    differentiable, so training and prediction scale the cell alike.
    """
    bound, _ = _gram_iteration(weight)
    return bound


def _gram_iteration(weight: jax.Array):
    """Return the bound and G, G^2, G^4, ..., each up to a factor."""
    n_in, n_out = weight.shape
    gram = weight.T @ weight if n_out < n_in else weight @ weight.T
    tiny = jnp.finfo(weight.dtype).tiny
    log_norm = jnp.zeros((), weight.dtype)  # log of the factors divided out, per power of G
    powers = []
    for _ in range(GRAM_ITERATIONS):
        norm = jnp.sqrt(jnp.sum(gram**2) + tiny)
        powers.append(gram / norm)
        gram = powers[-1] @ powers[-1]
        log_norm = 2 * (log_norm + jnp.log(norm))
    powers.append(gram)
    log_norm = log_norm + 0.5 * jnp.log(jnp.sum(gram**2) + tiny)
    return log_norm / 2 ** (GRAM_ITERATIONS + 1), powers


def _gram_forward(weight):
    bound, powers = _gram_iteration(weight)
    return bound, (weight, powers)


def _gram_backward(residuals, cotangent):
    """Pull back by d log sigma = tr(M dG) / (2 tr(M G)), M = G^63: each power once."""
    weight, (first, *others) = residuals
    m = first
    for power in others:
        m = m @ power
    # Of the first power, G / ||G||, as of the weight, the factor goes out with the trace.
    n_in, n_out = weight.shape
    grad = weight @ m if n_out < n_in else m @ weight
    return (cotangent * grad / (jnp.sum(grad * weight) + jnp.finfo(weight.dtype).tiny),)


_log_spectral_norm_bound.defvjp(_gram_forward, _gram_backward)


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
        per_sample = -(target * jax.nn.log_softmax(output)).sum(axis=1)
    else:
        per_sample = ((output - target) ** 2).mean(axis=1)
    return weight @ per_sample / _positive(weight.sum())


def weight_penalty(params: Mapping[str, jax.Array], weight: jax.Array) -> jax.Array:
    """Return ``sum(W ** 2) / (2 sum(weight))`` over all weights W that are not biases."""
    squares = sum(jnp.sum(p**2) for name, p in params.items() if name.endswith(".weight"))
    return 0.5 * squares / _positive(weight.sum())


def _positive(total: jax.Array) -> jax.Array:
    """Stand in 1 for a sum of weights that is 0."""
    return jnp.where(total > 0, total, 1)
