"""What layers compute, as pure functions of JAX arrays; the twin of :mod:`pydeq.model.forward`.

To add a layer, describe it in :mod:`pydeq.layers` and say here what it computes.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pydeq import layers
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
    """Return one product with all that a kernel sees of each pixel.

    With XLA's own convolution, which is slow in a loop on a CPU, the search and the gradient of
    `presets.mnist_conv` took 2.5 times as long.
    """
    weight, bias = params[f"{placed.name}.weight"], params[f"{placed.name}.bias"]
    channels, height, width = placed.gives
    k, step = layer.kernel_size, layer.stride
    sides = ((k - 1) // 2, k // 2)
    mode = "wrap" if layer.padding == "circular" else "constant"
    a = jnp.pad(a.transpose(0, 2, 3, 1), ((0, 0), sides, sides, (0, 0)), mode)
    rows, columns = (height - 1) * step + 1, (width - 1) * step + 1
    seen = [a[:, i : i + rows : step, j : j + columns : step] for i in range(k) for j in range(k)]
    kernel = weight.transpose(2, 3, 1, 0).reshape(-1, channels)
    made = jnp.concatenate(seen, axis=3).reshape(-1, len(kernel)) @ kernel + bias
    return made.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)


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
    a = a[:, :, : height * layer.size, : width * layer.size]
    a = a.reshape(-1, channels, height, layer.size, width, layer.size)
    return a.mean(axis=(3, 5)) if isinstance(layer, layers.MeanPool) else a.max(axis=(3, 5))


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
