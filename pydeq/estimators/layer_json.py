"""Layers as JSON has them, for model files and checkpoints; reading them runs no code of a file."""

import dataclasses
from typing import Any

from pydeq import layers

__all__ = ["layer_from_json", "layer_to_json"]

_KINDS: dict[str, type[layers.Layer]] = {
    kind.__name__: kind
    for kind in (
        layers.Activation,
        layers.Branches,
        layers.Conv,
        layers.Dense,
        layers.Flatten,
        layers.Fuse,
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
    if isinstance(layer, layers.Branches):
        fields["branches"] = [[layer_to_json(inner) for inner in own] for own in layer.branches]
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
        given["layers"] = _list_from_json("layers of a Residual", given["layers"], depth)
    elif kind is layers.Branches:
        branches = given["branches"]
        if not isinstance(branches, list):
            raise ValueError("the branches of Branches must be a list")
        given["branches"] = [_list_from_json("layers of a branch", b, depth) for b in branches]
    return kind(**given)


def _list_from_json(what: str, value: Any, depth: int) -> list[layers.Layer]:
    if not isinstance(value, list) or not depth:
        raise ValueError(f"the {what} must be a list, and not too deep")
    return [layer_from_json(inner, depth - 1) for inner in value]


def _fields(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _is_named(value: dict[str, Any]) -> bool:
    return isinstance(value.get("layer"), str)
