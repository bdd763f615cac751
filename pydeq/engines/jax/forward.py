"""What layers compute, as pure functions of JAX arrays; the twin of :mod:`pydeq.model.forward`.

To add a layer, describe it in :mod:`pydeq.layers` and say here what it computes.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pydeq import layers
from pydeq.engines.jax.convolution import correlate, patches
from pydeq.model import Part, Placed
from pydeq.shapes import is_several, n_values

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

    `params` are the parameters as they act: a ``<name>.factor`` is what a layer of layers is
    multiplied by; without one it is 1.
    """
    if not part:
        return rows
    takes = part[0].takes
    made = forward(part, params, rows.reshape(-1, *takes) if len(takes) > 1 else rows)
    return made.reshape(*rows.shape[:-1], -1)


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
    return _times_factor(placed, params, a + forward(placed.parts[0], params, a))


def _branches(placed: Placed, layer: layers.Branches, params: Params, a: jax.Array) -> jax.Array:
    several = is_several(placed.given)
    given = _apart(placed, a) if several else [a for _ in placed.parts]
    each = zip(placed.parts, given, strict=True)
    made = [forward(part, params, own) for part, own in each]
    return _times_factor(placed, params, _in_rows(made))


def _fuse(placed: Placed, layer: layers.Fuse, params: Params, a: jax.Array) -> jax.Array:
    given = _apart(placed, a)
    total = list(given)
    for path, part in zip(layer.paths(placed.given), placed.parts, strict=True):
        made = forward(part, params, given[path.source])
        if path.target < path.source:
            made = _repeated(made, path.step, *placed.given[path.target][1:])
        total[path.target] = total[path.target] + made
    return _times_factor(placed, params, _in_rows(total))


def _times_factor(placed: Placed, params: Params, a: jax.Array) -> jax.Array:
    factor = params.get(f"{placed.name}.factor")
    return a if factor is None else factor * a


def _apart(placed: Placed, a: jax.Array) -> list[jax.Array]:
    """Return the images ``(n, *shape)`` that stand in rows ``(n, size)``, or in one ``(size,)``."""
    ends = np.cumsum([n_values(shape) for shape in placed.given])[:-1]
    parts = jnp.split(a, ends, axis=-1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, placed.given, strict=True)]


def _in_rows(images: list[jax.Array]) -> jax.Array:
    return jnp.concatenate([image.reshape(len(image), -1) for image in images], axis=1)


def _repeated(a: jax.Array, step: int, height: int, width: int) -> jax.Array:
    """Return images of which each pixel is step x step, as far as the size goes."""
    n, channels, rows, columns = a.shape
    pixels = jnp.broadcast_to(a[:, :, :, None, :, None], (n, channels, rows, step, columns, step))
    return pixels.reshape(n, channels, rows * step, columns * step)[:, :, :height, :width]


_MAPS = {
    layers.Dense: _dense,
    layers.Conv: _conv,
    layers.Activation: _activation,
    layers.GroupNorm: _group_norm,
    layers.MaxPool: _pool,
    layers.MeanPool: _pool,
    layers.Flatten: _flatten,
    layers.Residual: _residual,
    layers.Branches: _branches,
    layers.Fuse: _fuse,
}
