"""Layers as JSON has them, for model files and checkpoints; reading them runs no code of a file."""

import dataclasses
from typing import Any

from pydeq import layers

__all__ = ["layer_from_json", "layer_to_json"]

_KINDS: dict[str, type[layers.Layer]] = {
    kind.__name__: kind
    for kind in (
        layers.Activation,
        layers.Conv,
        layers.Dense,
        layers.Flatten,
        layers.GroupNorm,
        layers.MaxPool,
        layers.MeanPool,
        layers.Residual,
    )
}


def layer_to_json(layer: layers.Layer) -> dict[str, Any]:
    """Return a layer as ``{"layer": its kind, ...}`` with its fields."""
    fields = {name: getattr(layer, name) for name in _fields(type(layer))}
    if isinstance(layer, layers.Residual):
        fields["layers"] = [layer_to_json(inner) for inner in layer.layers]
    return {"layer": type(layer).__name__, **fields}


def layer_from_json(value: Any, depth: int = 10) -> layers.Layer:
    """Return the layer that `layer_to_json` wrote, of layers in at most `depth` others.

    Raises
    ------
    ValueError
        If it is not one.
    """
    kind = _KINDS.get(value["layer"]) if isinstance(value, dict) and _is_named(value) else None
    if kind is None:
        raise ValueError(f"a layer must have one of the kinds {', '.join(_KINDS)}")
    given = {name: field for name, field in value.items() if name != "layer"}
    if given.keys() != set(_fields(kind)):
        raise ValueError(f"a {kind.__name__} does not have the fields {', '.join(given)}")
    if kind is layers.Residual:
        if not isinstance(given["layers"], list) or not depth:
            raise ValueError("the layers of a Residual must be a list, and not too deep")
        given["layers"] = [layer_from_json(inner, depth - 1) for inner in given["layers"]]
    return kind(**given)


def _fields(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _is_named(value: dict[str, Any]) -> bool:
    return isinstance(value.get("layer"), str)
