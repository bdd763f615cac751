"""What layers compute, in numpy float64: the reference that engines are held to, and derivatives.

To add a layer, describe it in :mod:`pydeq.layers` and say here what it computes.
"""

from collections.abc import Callable, Mapping

import numpy as np
import scipy.special

from pydeq import layers
from pydeq.model.network import Part, Placed

__all__ = ["FUNCTIONS", "forward", "push_forward"]

FUNCTIONS = {
    "identity": (lambda v: v, None, 1.0),
    "logistic": (scipy.special.expit, lambda a: a * (1 - a), 0.25),
    "tanh": (np.tanh, lambda a: 1 - a**2, 1.0),
    "relu": (lambda v: np.maximum(v, 0), lambda a: (a > 0).astype(a.dtype), 1.0),
}
"""Of each activation: its value, its derivative as a function of the value, its Lipschitz constant.

A derivative of None is 1.
"""

Params = Mapping[str, np.ndarray]
Pair = tuple[np.ndarray, np.ndarray]


def forward(part: Part, params: Params, a: np.ndarray) -> np.ndarray:
    """Return what layers make of the samples `a` ``(n, *shape)``.

    `params` are the parameters as they act: a ``<name>.factor`` is what a `Residual` is multiplied
    by; without one it is 1.
    """
    return push_forward(part, params, a, np.zeros_like(a))[0]


def push_forward(part: Part, params: Params, a: np.ndarray, t: np.ndarray) -> Pair:
    """Return what layers make of `a`, and the derivative of that along the tangents `t`."""
    for placed in part:
        a, t = _MAPS[type(placed.layer)](placed, placed.layer, params, a, t)
    return a, t


def _dense(
    placed: Placed, layer: layers.Dense, params: Params, a: np.ndarray, t: np.ndarray
) -> Pair:
    weight = params[f"{placed.name}.weight"]
    return a @ weight + params[f"{placed.name}.bias"], t @ weight


def _conv(placed: Placed, layer: layers.Conv, params: Params, a: np.ndarray, t: np.ndarray) -> Pair:
    weight, bias = params[f"{placed.name}.weight"], params[f"{placed.name}.bias"]
    before, after = (layer.kernel_size - 1) // 2, layer.kernel_size // 2
    size, step = (layer.kernel_size, layer.kernel_size), layer.stride

    def correlate(image: np.ndarray) -> np.ndarray:
        sides = ((0, 0), (0, 0), (before, after), (before, after))
        image = np.pad(image, sides, "wrap" if layer.padding == "circular" else "constant")
        windows = np.lib.stride_tricks.sliding_window_view(image, size, (2, 3))
        windows = windows[:, :, ::step, ::step]  # (n, in, height, width, kernel, kernel)
        return np.moveaxis(np.tensordot(windows, weight, ((1, 4, 5), (1, 2, 3))), 3, 1)

    return correlate(a) + bias[:, None, None], correlate(t)


def _activation(
    placed: Placed, layer: layers.Activation, params: Params, a: np.ndarray, t: np.ndarray
) -> Pair:
    act, slope, _ = FUNCTIONS[layer.name]
    a = act(a)
    return a, t if slope is None else slope(a) * t


def _group_norm(
    placed: Placed, layer: layers.GroupNorm, params: Params, a: np.ndarray, t: np.ndarray
) -> Pair:
    shape, rows = a.shape, (len(a), layer.groups, -1)
    a, t = a.reshape(rows), t.reshape(rows)
    a, t = (v - v.mean(axis=2, keepdims=True) for v in (a, t))
    inverse = 1 / np.sqrt((a**2).mean(axis=2, keepdims=True) + layer.epsilon)
    a, t = a * inverse, t * inverse
    t = t - a * (a * t).mean(axis=2, keepdims=True)
    of_channel = (-1, *(1 for _ in shape[2:]))
    scale, bias = (params[f"{placed.name}.{n}"].reshape(of_channel) for n in ("scale", "bias"))
    return a.reshape(shape) * scale + bias, t.reshape(shape) * scale


def _pool(
    placed: Placed,
    layer: layers.MaxPool | layers.MeanPool,
    params: Params,
    a: np.ndarray,
    t: np.ndarray,
) -> Pair:
    channels, height, width = placed.gives
    k = layer.size

    def squares(image: np.ndarray) -> np.ndarray:
        image = image[:, :, : height * k, : width * k]
        image = image.reshape(-1, channels, height, k, width, k)
        return image.swapaxes(3, 4).reshape(-1, channels, height, width, k * k)

    a, t = squares(a), squares(t)
    if isinstance(layer, layers.MeanPool):
        return a.mean(axis=4), t.mean(axis=4)
    largest = a.argmax(axis=4)[..., None]
    return np.take_along_axis(a, largest, 4)[..., 0], np.take_along_axis(t, largest, 4)[..., 0]


def _flatten(
    placed: Placed, layer: layers.Flatten, params: Params, a: np.ndarray, t: np.ndarray
) -> Pair:
    rows = (len(a), *placed.gives)
    return a.reshape(rows), t.reshape(rows)


def _residual(
    placed: Placed, layer: layers.Residual, params: Params, a: np.ndarray, t: np.ndarray
) -> Pair:
    factor = params.get(f"{placed.name}.factor", 1.0)
    inner, along = push_forward(placed.inner, params, a, t)
    return factor * (a + inner), factor * (t + along)


_MAPS: dict[type, Callable[..., Pair]] = {
    layers.Dense: _dense,
    layers.Conv: _conv,
    layers.Activation: _activation,
    layers.GroupNorm: _group_norm,
    layers.MaxPool: _pool,
    layers.MeanPool: _pool,
    layers.Flatten: _flatten,
    layers.Residual: _residual,
}
