"""Checks of a model's layers: from an estimator's parameters to a model's."""

import dataclasses
import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np

from pydeq.cell_function import CellFunction
from pydeq.engines import julia_cell
from pydeq.layers import Activation, Conv, GroupNorm, Layer, MaxPool, MeanPool
from pydeq.model import Init, ModelSpec, Placed, walk

__all__ = ["ARCHITECTURE", "with_layers"]

ARCHITECTURE = {"input_shape": None, "encoder": None, "cell": None, "decoder": None, "init": "cell"}
"""The parameters that say a model's layers, with their defaults."""

PARTS = ("encoder", "cell", "decoder")
"""Those that are None or layers; None: what `n_state` and others say."""


def with_layers(params: Mapping[str, Any], model: ModelSpec) -> ModelSpec:
    """Return `model` with the layers that `params`, an estimator's parameters, ask for.

    Raises
    ------
    ValueError
        If a value is none, or a layer does not fit where it stands. It names the layer, its place,
        what it is given and what it needs.
    """
    given: dict[str, Any] = {n: _layers(n, params.get(n)) for n in PARTS if n != "cell"}
    given["cell"] = _cell(params)
    given["init"] = _init(params.get("init", ARCHITECTURE["init"]))
    model = dataclasses.replace(model, **given, input_shape=_input_shape(params, model.n_features))
    if not model.has_layers:
        _state_shape(model)
        return model
    if model.cell is not None:
        if isinstance(model.cell, CellFunction):
            _check_stability(model.cell, model.stability)
        elif model.stability == "monotone":
            _check_monotone(model.cell)
        elif not model.cell:
            raise ValueError("cell must have a layer with weights; got ().")
        model = dataclasses.replace(model, hidden_layer_sizes=(), activation="identity")
        if model.stability == "monotone":
            model = dataclasses.replace(model, activation=_last_name(model.cell))
    if model.encoder is not None:
        if model.n_state is None and model.decoder is None:
            model = dataclasses.replace(model, decoder=())
        model = dataclasses.replace(model, n_state=1)
        model = dataclasses.replace(model, n_state=model.state_width)
    _check_cell(model)
    return model


def _state_shape(model: ModelSpec) -> tuple[int, ...]:
    """Return the shape of the state; all else is checked here too."""
    return model.network.state_shape


def _cell(params: Mapping[str, Any]) -> tuple[Layer, ...] | CellFunction | None:
    value, random_state = params.get("cell"), params.get("random_state")
    if isinstance(value, CellFunction):
        return value
    if isinstance(value, str):
        if params.get("engine") == "jax":
            raise ValueError(
                "cell is a string, Julia code that makes a Lux layer, and needs engine='julia' or "
                f"'auto'; got engine='jax' and cell={value!r:.100}. Layers stand in a list: "
                "cell=[Dense(16), Activation('tanh')]."
            )
        return julia_cell(value, int(random_state) if isinstance(random_state, Integral) else 0)
    if callable(value):
        raise ValueError(
            "cell must be None, a sequence of pydeq.layers, Julia code or a CellFunction; got "
            f"{value!r:.100}. A function needs the values that its parameters start from: "
            "CellFunction(function, params)."
        )
    return _layers("cell", value, "None, Julia code, a CellFunction")


def _check_stability(cell: CellFunction, stability: str) -> None:
    if stability in ("contractive", "monotone"):
        raise ValueError(
            f"stability={stability!r} needs a bound of each layer of the cell, and {cell!r:.200} "
            "is a function, of which pydeq knows none. Take stability='jacobian' or 'none'."
        )


def _check_monotone(cell: tuple[Layer, ...]) -> None:
    kinds = tuple(type(layer) for layer in cell)
    if kinds != (Conv, Activation) or getattr(cell[0], "stride", 1) != 1:
        raise ValueError(
            "stability='monotone' is a cell of one layer with the activation on it: cell=None with "
            "hidden_layer_sizes=(), or cell=[Conv(channels), Activation(name)] without a stride; "
            f"got cell={cell!r:.300}."
        )


def _last_name(cell: Any) -> Any:
    return cell[-1].name


def _check_kernel(placed: Placed) -> None:
    conv: Any = placed.layer
    width = 2 * conv.kernel_size - 1
    if width > min(placed.given[1:]):
        raise ValueError(
            f"{placed.where}: the monotone cell's kernel is twice as wide, {width} x {width}, and "
            f"needs an image that is not smaller; it is given {placed.given}."
        )


def _check_cell(model: ModelSpec) -> None:
    cell = model.network.cell
    if isinstance(model.cell, CellFunction):
        return
    if not any(placed.has_weights for placed in cell):
        raise ValueError(
            f"cell must have a layer with weights, such as Dense or Conv; got {model.cell!r:.300}."
        )
    if model.stability == "monotone" and model.cell is not None:
        _check_kernel(cell[0])
    if model.stability != "contractive":
        return
    for placed in walk(cell):
        if isinstance(placed.layer, GroupNorm):
            raise ValueError(
                f"{placed.where}: stability='contractive' scales a cell by the Lipschitz bounds of "
                "its layers, and this one has none: it divides by the spread of its input, which "
                "may be near 0. Leave it out of the cell (the encoder may have it), or take "
                "stability='jacobian' or 'none'."
            )
    free = (Activation, MaxPool, MeanPool)
    if all(isinstance(p.layer, free) or not p.has_weights for p in cell):
        raise ValueError(
            "cell must have a layer that can be scaled: Dense, Conv, Residual, Branches or Fuse."
        )


def _input_shape(params: Mapping[str, Any], n_features: int) -> tuple[int, ...] | None:
    value = params.get("input_shape")
    if value is None:
        return None
    shape = value.tolist() if isinstance(value, np.ndarray) else value
    integers = isinstance(shape, list | tuple) and all(
        isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= 1 for n in shape
    )
    if not integers or len(shape) not in (1, 3):
        raise ValueError(
            "input_shape must be None, the shape of an image (channels, height, width), such as "
            f"(1, 28, 28), or (n_features,); got {value!r}."
        )
    if math.prod(shape) != n_features:
        raise ValueError(
            f"input_shape={tuple(shape)} has {math.prod(shape)} values, and X has {n_features} "
            "features; each row of X must be one image, channel by channel, row by row."
        )
    return tuple(int(n) for n in shape)


def _init(value: Any) -> Init:
    if isinstance(value, str) and value in ("cell", "zero"):
        return value
    if isinstance(value, str) and value == "encoder":
        return ()
    layers = None if isinstance(value, str) else _layers("init", value, "'cell', 'zero', 'encoder'")
    if layers is None:
        raise ValueError(_needed("init", value, "'cell', 'zero', 'encoder'"))
    return layers


def _needed(name: str, value: Any, or_else: str) -> str:
    return (
        f"{name} must be {or_else} or a sequence of pydeq.layers, such as [Dense(64)]; got "
        f"{value!r:.300}."
    )


def _layers(name: str, value: Any, or_else: str = "None") -> tuple[Layer, ...] | None:
    if value is None:
        return None
    given = (value,) if isinstance(value, Layer) else value
    if not isinstance(given, list | tuple):
        raise ValueError(_needed(name, value, or_else))
    for i, layer in enumerate(given):
        if not isinstance(layer, Layer):
            raise ValueError(f"{name}[{i}] must be one of pydeq.layers; got {layer!r:.300}.")
    return tuple(given)
