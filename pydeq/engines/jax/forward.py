"""What layers compute, as pure functions of JAX arrays; the twin of :mod:`pydeq.model.forward`.

To add a layer, describe it in :mod:`pydeq.layers` and say here what it computes.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pydeq import layers
from pydeq.engines.jax.convolution import correlate, correlate_one, patches
from pydeq.model import Part, Placed
from pydeq.shapes import Shape, array_shape, is_several

__all__ = ["FUNCTIONS", "channels_first", "channels_last", "forward", "forward_rows"]

FUNCTIONS = {
    "identity": lambda v: v,
    "logistic": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
}
"""Every activation by name."""

Params = Mapping[str, jax.Array]


def channels_last(rows: Any, shape: Shape) -> Any:
    """Return samples as the engine has them, of rows ``(..., n)`` as the user has them.

    The images in a row become ``(height, width, channels)``: XLA's convolutions for CPUs want the
    channels last, and so do loops over neighbours. Takes arrays of numpy and of JAX.
    """
    return _apart_by(rows, shape, lambda c, height, width: (c, height * width))


def channels_first(rows: Any, shape: Shape) -> Any:
    """Return what `channels_last` was given."""
    return _apart_by(rows, shape, lambda c, height, width: (height * width, c))


def _apart_by(rows: Any, shape: Shape, matrix: Callable[[int, int, int], tuple[int, int]]) -> Any:
    """Transpose each image in the rows as a matrix of that shape."""
    if is_several(shape):
        ends = np.cumsum([math.prod(part) for part in shape])
        each = zip(shape, [0, *ends[:-1]], ends, strict=True)
        parts = [_apart_by(rows[..., first:last], part, matrix) for part, first, last in each]
        return (np if isinstance(rows, np.ndarray) else jnp).concatenate(parts, axis=-1)
    if len(shape) == 1:
        return rows
    images = rows.reshape(*rows.shape[:-1], *matrix(*shape))
    return images.swapaxes(-1, -2).reshape(rows.shape)


def forward_rows(part: Part, params: Params, rows: jax.Array) -> jax.Array:
    """Return what layers make of samples ``(n, size)``, or of one ``(size,)``: see `channels_last`.

    `params` are the parameters as they act: a ``<name>.factor`` is what a layer of layers is
    multiplied by; without one it is 1.
    """
    if not part:
        return rows
    made = forward(part, params, _of_row(rows, part[0].given))
    return made.reshape(*rows.shape[:-1], -1)


def _of_row(rows: jax.Array, shape: Shape) -> jax.Array:
    """Return samples as layers have them: images ``(n, height, width, channels)``, else rows."""
    if len(array_shape(shape)) == 1:
        return rows
    channels, height, width = shape
    return rows.reshape(-1, height, width, channels)


def forward(part: Part, params: Params, a: jax.Array) -> jax.Array:
    """Return what layers make of samples, which are as `_of_row` has them."""
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
    kernel = weight.transpose(2, 3, 1, 0)
    if layer.padding == "circular":
        a, sides = jnp.pad(a, ((0, 0), sides, sides, (0, 0)), "wrap"), (0, 0)
    if k > 1 and step == 1 and a.shape[3] == 1:
        made: Any = correlate_one(a, kernel, (sides, sides))
    elif k > 1 and step == 1 and a.dtype == jnp.float32:
        made = correlate(a, kernel, (sides, sides))
    else:
        seen = patches(jnp.pad(a, ((0, 0), sides, sides, (0, 0))), (k, k), step, tuple(size))
        made = (seen @ kernel.reshape(-1, channels)).reshape(-1, *size, channels)
    return made + bias


def _activation(
    placed: Placed, layer: layers.Activation, params: Params, a: jax.Array
) -> jax.Array:
    return FUNCTIONS[layer.name](a)


def _group_norm(placed: Placed, layer: layers.GroupNorm, params: Params, a: jax.Array) -> jax.Array:
    pixels = tuple(range(1, len(placed.given)))

    def mean(a: jax.Array) -> jax.Array:
        """Return that of each group, at each of its channels."""
        of_channel = a.mean(axis=pixels, keepdims=True) if pixels else a
        groups = of_channel.reshape(*of_channel.shape[:-1], layer.groups, -1)
        means = jnp.broadcast_to(groups.mean(axis=-1, keepdims=True), groups.shape)
        return means.reshape(of_channel.shape)

    a = a - mean(a)
    a = a * jax.lax.rsqrt(mean(a**2) + layer.epsilon)
    return a * params[f"{placed.name}.scale"] + params[f"{placed.name}.bias"]


def _pool(placed: Placed, layer: Any, params: Params, a: jax.Array) -> jax.Array:
    channels, height, width = placed.gives
    k = layer.size
    a = a[:, : height * k, : width * k].reshape(-1, height, k, width, k, channels)
    if isinstance(layer, layers.MeanPool):
        return a.mean(axis=(2, 4))
    # The derivative of maximum is quick, that of max takes ten times as long as itself.
    a = functools.reduce(jnp.maximum, [a[:, :, i] for i in range(k)])
    return functools.reduce(jnp.maximum, [a[:, :, :, i] for i in range(k)])


def _flatten(placed: Placed, layer: Any, params: Params, a: jax.Array) -> jax.Array:
    is_image = len(array_shape(placed.given)) > 1
    return channels_first(a.reshape(len(a), -1) if is_image else a, placed.given)


def _residual(placed: Placed, layer: Any, params: Params, a: jax.Array) -> jax.Array:
    return _times_factor(placed, params, a + forward(placed.parts[0], params, a))


def _branches(placed: Placed, layer: layers.Branches, params: Params, a: jax.Array) -> jax.Array:
    given = _apart(a, placed.given) if is_several(placed.given) else [a for _ in placed.parts]
    each = zip(placed.parts, given, strict=True)
    made = [forward(part, params, own) for part, own in each]
    return _times_factor(placed, params, _together(made))


def _fuse(placed: Placed, layer: layers.Fuse, params: Params, a: jax.Array) -> jax.Array:
    given = _apart(a, placed.given)
    total = list(given)
    for path, part in zip(layer.paths(placed.given), placed.parts, strict=True):
        made = forward(part, params, given[path.source])
        if path.target < path.source:
            made = _repeated(made, path.step, *placed.given[path.target][1:])
        total[path.target] = total[path.target] + made
    return _times_factor(placed, params, _together(total))


def _times_factor(placed: Placed, params: Params, a: jax.Array) -> jax.Array:
    factor = params.get(f"{placed.name}.factor")
    return a if factor is None else factor * a


def _apart(a: jax.Array, shapes: Shape) -> list[jax.Array]:
    """Return the images and rows that stand in rows ``(n, size)``, or in one ``(size,)``."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    parts = jnp.split(a.reshape(-1, a.shape[-1]), ends, axis=1)
    return [_of_row(part, shape) for part, shape in zip(parts, shapes, strict=True)]


def _together(parts: list[jax.Array]) -> jax.Array:
    return jnp.concatenate([part.reshape(len(part), -1) for part in parts], axis=-1)


def _repeated(a: jax.Array, step: int, height: int, width: int) -> jax.Array:
    """Return images of which each pixel is step x step, as far as the size goes."""
    n, rows, columns, channels = a.shape
    shape = (n, rows, step, columns, step, channels)
    pixels = jnp.broadcast_to(a[:, :, None, :, None], shape)
    return pixels.reshape(n, rows * step, columns * step, channels)[:, :height, :width]


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
