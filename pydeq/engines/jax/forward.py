"""What layers compute, as pure functions of JAX arrays; the twin of :mod:`pydeq.model.forward`.

To add a layer, describe it in :mod:`pydeq.layers` and say here what it computes.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pydeq import layers
from pydeq.engines.jax.convolution import correlate, patches
from pydeq.model import Part, Placed

__all__ = ["FUNCTIONS", "forward", "forward_rows"]

FUNCTIONS = {
    "identity": lambda v: v,
    "logistic": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
}
"""Every activation by name."""

Params = Mapping[str, jax.Array]


def forward_rows(part: Part, params: Params, rows: jax.Array) -> jax.Array:
    """Return what layers make of samples that are rows ``(n, size)``, or of one ``(size,)``.

    `params` are the parameters as they act: a ``<name>.factor`` is what a `Residual` is multiplied
    by; without one it is 1.
    """
    if not part:
        return rows
    made = forward(part, params, rows.reshape(-1, *part[0].given) if _is_image(part) else rows)
    return made.reshape(*rows.shape[:-1], -1)


def _is_image(part: Part) -> bool:
    return len(part[0].given) > 1


def forward(part: Part, params: Params, a: jax.Array) -> jax.Array:
    """Return what layers make of the samples `a` ``(n, *shape)``."""
    for placed in part:
        a = _MAPS[type(placed.layer)](placed, placed.layer, params, a)
    return a


def _dense(placed: Placed, layer: Any, params: Params, a: jax.Array) -> jax.Array:
    return a @ params[f"{placed.name}.weight"] + params[f"{placed.name}.bias"]


def _conv(placed: Placed, layer: layers.Conv, params: Params, a: jax.Array) -> jax.Array:
    """Return a convolution or, of what XLA has no quick one for, a product with what it sees."""
    weight, bias = params[f"{placed.name}.weight"], params[f"{placed.name}.bias"]
    channels, *size = placed.gives
    k, step = layer.kernel_size, layer.stride
    sides = ((k - 1) // 2, k // 2)
    a, kernel = a.transpose(0, 2, 3, 1), weight.transpose(2, 3, 1, 0)
    if layer.padding == "circular":
        a, sides = jnp.pad(a, ((0, 0), sides, sides, (0, 0)), "wrap"), (0, 0)
    if k > 1 and step == 1 and a.dtype == jnp.float32:
        made: Any = correlate(a, kernel, (sides, sides))
    else:
        seen = patches(jnp.pad(a, ((0, 0), sides, sides, (0, 0))), k, step, tuple(size))
        made = (seen @ kernel.reshape(-1, channels)).reshape(-1, *size, channels)
    return (made + bias).transpose(0, 3, 1, 2)


def _activation(
    placed: Placed, layer: layers.Activation, params: Params, a: jax.Array
) -> jax.Array:
    return FUNCTIONS[layer.name](a)


def _group_norm(placed: Placed, layer: layers.GroupNorm, params: Params, a: jax.Array) -> jax.Array:
    shape = a.shape
    a = a.reshape(*shape[: a.ndim - len(placed.given)], layer.groups, -1)
    a = a - a.mean(axis=-1, keepdims=True)
    a = a * jax.lax.rsqrt((a**2).mean(axis=-1, keepdims=True) + layer.epsilon)
    of_channel = (-1, *(1 for _ in placed.given[1:]))
    scale, bias = (params[f"{placed.name}.{n}"].reshape(of_channel) for n in ("scale", "bias"))
    return a.reshape(shape) * scale + bias


def _pool(placed: Placed, layer: Any, params: Params, a: jax.Array) -> jax.Array:
    channels, height, width = placed.gives
    k = layer.size
    a = a[:, :, : height * k, : width * k]
    if isinstance(layer, layers.MeanPool):
        return a.reshape(-1, channels, height, k, width, k).mean(axis=(3, 5))
    # The derivative of maximum is quick, that of max takes ten times as long as itself.
    a = functools.reduce(jnp.maximum, [a[:, :, i::k] for i in range(k)])
    return functools.reduce(jnp.maximum, [a[:, :, :, i::k] for i in range(k)])


def _flatten(placed: Placed, layer: Any, params: Params, a: jax.Array) -> jax.Array:
    return a.reshape(len(a), *placed.gives)


def _residual(placed: Placed, layer: Any, params: Params, a: jax.Array) -> jax.Array:
    total = a + forward(placed.inner, params, a)
    factor = params.get(f"{placed.name}.factor")
    return total if factor is None else factor * total


_MAPS = {
    layers.Dense: _dense,
    layers.Conv: _conv,
    layers.Activation: _activation,
    layers.GroupNorm: _group_norm,
    layers.MaxPool: _pool,
    layers.MeanPool: _pool,
    layers.Flatten: _flatten,
    layers.Residual: _residual,
}
