"""The optimiser: Adam, an L2 penalty on weights, and what of the parameters is trained."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pydeq.engines.jax.vectors import Vectors, marks
from pydeq.model import ModelSpec

__all__ = ["AdamState", "Rates", "adam", "trained_elements", "with_decay"]


class Rates(NamedTuple):
    """The numbers of :class:`pydeq.model.OptimizerSpec`."""

    learning_rate: jax.Array
    alpha: jax.Array
    jacobian_penalty: jax.Array
    init_penalty: jax.Array
    train_encoder: jax.Array  # bool


class AdamState(NamedTuple):
    """The parameters, and Adam's memory of them, as :mod:`pydeq.engines.jax.vectors`."""

    theta: Vectors
    mean: Vectors
    square: Vectors
    count: jax.Array  # () int32


def trained_elements(model: ModelSpec, rates: Rates) -> list[jax.Array | bool]:
    """Return which elements of each vector are trained; True: all."""
    is_encoder = marks(model, lambda name: name.startswith("encoder."))
    return [rates.train_encoder | ~mark if mark.any() else True for mark in is_encoder]


def with_decay(
    model: ModelSpec,
    theta: Vectors,
    grads: Vectors,
    trained: list[jax.Array | bool],
    loss: jax.Array,
    decay: jax.Array,
) -> tuple[jax.Array, Vectors]:
    """Return loss and gradient with those of the L2 penalty; 0 for what is not trained."""
    gradient = []
    is_weight = marks(model, lambda name: name.endswith(".weight"))
    for value, g, weights, which in zip(theta, grads, is_weight, trained, strict=True):
        shrink = jnp.where(weights, decay, 0) * value
        loss = loss + 0.5 * jnp.sum(shrink * value)
        gradient.append(jnp.where(which, g + shrink, 0))
    return loss, tuple(gradient)


def adam(
    state: AdamState,
    gradient: Vectors,
    trained: list[jax.Array | bool],
    rate: jax.Array,
    counts: jax.Array,
) -> AdamState:
    """Take a step of Adam (Kingma and Ba 2015, algorithm 1) where the batch counts."""
    before = optax.ScaleByAdamState(state.count, state.mean, state.square)
    direction: Any
    after: Any
    direction, after = optax.scale_by_adam().update(gradient, before)
    # An encoder that is not trained has a gradient of 0, but Adam may remember another.
    theta = tuple(
        value - rate * jnp.where(which, move, 0)
        for value, move, which in zip(state.theta, direction, trained, strict=True)
    )
    new = AdamState(theta, after.mu, after.nu, after.count)
    return jax.tree.map(lambda n, o: jnp.where(counts, n, o), new, state)
