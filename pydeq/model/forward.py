"""What layers compute, in numpy float64: the reference that engines are held to, and derivatives.

To add a layer, describe it in :mod:`pydeq.layers` and say here what it computes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special

from pydeq import layers
from pydeq.model.network import Part, Placed
from pydeq.shapes import is_several, n_values

__all__ = ["FUNCTIONS", "Recorded", "Tape", "assemble", "forward", "push", "record", "shares"]

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
Known = tuple[np.ndarray, ...]
"""What the derivative of a layer needs to know of n samples, arrays ``(n, ...)``."""


class Recorded(NamedTuple):
    """A layer, and what its derivative needs to know."""

    placed: Placed
    known: Known
    parts: "tuple[Tape, ...]" = ()

    def at(self, rows: np.ndarray) -> "Recorded":
        """Return the same of some samples."""
        parts = tuple(tuple(layer.at(rows) for layer in part) for part in self.parts)
        return Recorded(self.placed, tuple(array[rows] for array in self.known), parts)


Tape = tuple[Recorded, ...]


def forward(part: Part, params: Params, a: np.ndarray) -> np.ndarray:
    """Return what layers make of the samples `a` ``(n, *shape)``.

    `params` are the parameters as they act: a ``<name>.factor`` is what a layer of layers is
    multiplied by; without one it is 1.
    """
    return record(part, params, a)[0]


def record(part: Part, params: Params, a: np.ndarray) -> tuple[np.ndarray, Tape]:
    """Return what layers make of the samples `a`, and what their derivatives need to know."""
    tape = []
    for placed in part:
        parts: tuple[Tape, ...] = ()
        if placed.has_factor:
            each = zip(placed.parts, shares(placed, a), strict=True)
            pairs = [record(part, params, own) for part, own in each]
            parts = tuple(of_part for _, of_part in pairs)
            a, known = assemble(placed, params, a, [made for made, _ in pairs]), ()
        else:
            a, known = _VALUES[type(placed.layer)](placed, placed.layer, params, a)
        tape.append(Recorded(placed, known, parts))
    return a, tuple(tape)


def push(tape: Tape, params: Params, t: np.ndarray) -> np.ndarray:
    """Return the derivatives of layers along tangents `t` ``(n k, *shape)``, k for each sample."""
    for placed, known, parts in tape:
        if placed.has_factor:
            each = zip(parts, shares(placed, t), strict=True)
            t = assemble(placed, params, t, [push(part, params, own) for part, own in each])
        else:
            known = tuple(np.repeat(a, len(t) // len(a), axis=0) for a in known)
            t = _DERIVATIVES[type(placed.layer)](placed, placed.layer, params, known, t)
    return t


def shares(placed: Placed, a: np.ndarray) -> list[np.ndarray]:
    """Return what each part of a layer of layers is given of `a`."""
    layer = placed.layer
    if isinstance(layer, layers.Fuse):
        images = _apart(placed, a)
        return [images[path.source] for path in layer.paths(placed.given)]
    if isinstance(layer, layers.Branches) and is_several(placed.given):
        return _apart(placed, a)
    return [a for _ in placed.parts]


def assemble(
    placed: Placed, params: Params, a: np.ndarray, made: Sequence[np.ndarray]
) -> np.ndarray:
    """Return what a layer of layers makes of `a`, and of what its parts make of their shares."""
    factor, layer = params.get(f"{placed.name}.factor", 1.0), placed.layer
    if isinstance(layer, layers.Residual):
        return factor * (a + made[0])
    if isinstance(layer, layers.Branches):
        return factor * _in_a_row(made)
    images = _apart(placed, a)
    paths = layer.paths(placed.given) if isinstance(layer, layers.Fuse) else []
    for path, own in zip(paths, made, strict=True):
        if path.target < path.source:
            _, height, width = placed.given[path.target]
            own = own.repeat(path.step, axis=2).repeat(path.step, axis=3)[:, :, :height, :width]
        images[path.target] = images[path.target] + own
    return factor * _in_a_row(images)


def _apart(placed: Placed, a: np.ndarray) -> list[np.ndarray]:
    """Return the images ``(n, *shape)`` that stand in rows."""
    ends = np.cumsum([n_values(shape) for shape in placed.given])[:-1]
    parts = np.split(a, ends, axis=1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, placed.given, strict=True)]


def _in_a_row(images: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([image.reshape(len(image), -1) for image in images], axis=1)


def _dense(placed: Placed, layer: layers.Dense, params: Params, a: np.ndarray):
    return a @ params[f"{placed.name}.weight"] + params[f"{placed.name}.bias"], ()


def _push_dense(placed: Placed, layer: layers.Dense, params: Params, known: Known, t: np.ndarray):
    return t @ params[f"{placed.name}.weight"]


def _conv(placed: Placed, layer: layers.Conv, params: Params, a: np.ndarray):
    bias = params[f"{placed.name}.bias"]
    return _push_conv(placed, layer, params, (), a) + bias[:, None, None], ()


def _push_conv(placed: Placed, layer: layers.Conv, params: Params, known: Known, t: np.ndarray):
    before, after = (layer.kernel_size - 1) // 2, layer.kernel_size // 2
    size, step = (layer.kernel_size, layer.kernel_size), layer.stride
    sides = ((0, 0), (0, 0), (before, after), (before, after))
    image = np.pad(t, sides, "wrap" if layer.padding == "circular" else "constant")
    windows = np.lib.stride_tricks.sliding_window_view(image, size, (2, 3))
    windows = windows[:, :, ::step, ::step]  # (n, in, height, width, kernel, kernel)
    made = np.tensordot(windows, params[f"{placed.name}.weight"], ((1, 4, 5), (1, 2, 3)))
    return np.moveaxis(made, 3, 1)


def _activation(placed: Placed, layer: layers.Activation, params: Params, a: np.ndarray):
    act, slope, _ = FUNCTIONS[layer.name]
    a = act(a)
    return a, () if slope is None else (slope(a),)


def _push_activation(
    placed: Placed, layer: layers.Activation, params: Params, known: Known, t: np.ndarray
):
    return known[0] * t if known else t


def _group_norm(placed: Placed, layer: layers.GroupNorm, params: Params, a: np.ndarray):
    shape = a.shape
    a = a.reshape(len(a), layer.groups, -1)
    a = a - a.mean(axis=2, keepdims=True)
    inverse = 1 / np.sqrt((a**2).mean(axis=2, keepdims=True) + layer.epsilon)
    a = a * inverse
    scale, bias = _of_channels(placed, params, shape)
    return a.reshape(shape) * scale + bias, (a, inverse)


def _push_group_norm(
    placed: Placed, layer: layers.GroupNorm, params: Params, known: Known, t: np.ndarray
):
    (a, inverse), shape = known, t.shape
    t = t.reshape(a.shape)
    t = (t - t.mean(axis=2, keepdims=True)) * inverse
    t = t - a * (a * t).mean(axis=2, keepdims=True)
    return t.reshape(shape) * _of_channels(placed, params, shape)[0]


def _of_channels(placed: Placed, params: Params, shape: tuple[int, ...]) -> list[np.ndarray]:
    of_channel = (-1, *(1 for _ in shape[2:]))
    return [params[f"{placed.name}.{name}"].reshape(of_channel) for name in ("scale", "bias")]


def _squares(placed: Placed, image: np.ndarray) -> np.ndarray:
    """Return the pixels of each square, ``(n, channels, height, width, size ** 2)``."""
    (channels, height, width), k = placed.gives, getattr(placed.layer, "size", 1)
    image = image[:, :, : height * k, : width * k].reshape(-1, channels, height, k, width, k)
    return image.swapaxes(3, 4).reshape(-1, channels, height, width, k * k)


def _max_pool(placed: Placed, layer: layers.MaxPool, params: Params, a: np.ndarray):
    a = _squares(placed, a)
    largest = a.argmax(axis=4)[..., None]
    return np.take_along_axis(a, largest, 4)[..., 0], (largest,)


def _push_max_pool(
    placed: Placed, layer: layers.MaxPool, params: Params, known: Known, t: np.ndarray
):
    return np.take_along_axis(_squares(placed, t), known[0], 4)[..., 0]


def _mean_pool(placed: Placed, layer: layers.MeanPool, params: Params, a: np.ndarray):
    return _squares(placed, a).mean(axis=4), ()


def _push_mean_pool(
    placed: Placed, layer: layers.MeanPool, params: Params, known: Known, t: np.ndarray
):
    return _squares(placed, t).mean(axis=4)


def _flatten(placed: Placed, layer: layers.Flatten, params: Params, a: np.ndarray):
    return a.reshape(len(a), *placed.gives), ()


def _push_flatten(
    placed: Placed, layer: layers.Flatten, params: Params, known: Known, t: np.ndarray
):
    return t.reshape(len(t), *placed.gives)


_VALUES: dict[type, Callable[..., tuple[np.ndarray, Known]]] = {
    layers.Dense: _dense,
    layers.Conv: _conv,
    layers.Activation: _activation,
    layers.GroupNorm: _group_norm,
    layers.MaxPool: _max_pool,
    layers.MeanPool: _mean_pool,
    layers.Flatten: _flatten,
}
"""What each layer makes of samples, and what its derivative needs to know."""

_DERIVATIVES: dict[type, Callable[..., np.ndarray]] = {
    layers.Dense: _push_dense,
    layers.Conv: _push_conv,
    layers.Activation: _push_activation,
    layers.GroupNorm: _push_group_norm,
    layers.MaxPool: _push_max_pool,
    layers.MeanPool: _push_mean_pool,
    layers.Flatten: _push_flatten,
}
