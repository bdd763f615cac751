"""Layers in their places: which shape each is given and gives, and what its weights are called."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from pydeq.layers import Layer, Residual

__all__ = ["Network", "Part", "Placed", "place", "placed_parameters", "walk"]

Shape = tuple[int, ...]

_LARGEST = 2**31 - 1
"""The most values that a sample may become on its way."""


class Placed(NamedTuple):
    """A layer in its place."""

    layer: Layer
    where: str
    """What errors call it, such as ``cell[1], Dense(n_units=5)``."""
    name: str
    """What the names of its weights begin with, such as ``cell.0``."""
    given: Shape
    gives: Shape
    inner: "tuple[Placed, ...]" = ()
    """The layers of a `Residual`."""

    @property
    def has_weights(self) -> bool:
        """Whether it has weights, or is a `Residual`."""
        return _has_weights(self.layer)


Part = tuple[Placed, ...]
"""Encoder, cell or decoder: each is given what the one before gives."""


class Network(NamedTuple):
    """A model's layers; a state is kept as a row ``(n_state,)`` of `state_shape`, in C order."""

    input_shape: Shape
    encoder: Part
    state_shape: Shape
    cell: Part
    decoder: Part
    init: Part = ()
    """Of a first guess that is made of layers."""


def place(part: str, layers: tuple[Layer, ...], given: Shape) -> tuple[Part, Shape]:
    """Return the layers of a part in their places, and the shape that they give.

    Those that have weights are numbered: ``cell.0``, ``cell.1``. In an encoder or decoder with one
    of them it has no number: ``encoder``. Inside of a `Residual` the numbers begin anew:
    ``cell.1.0``.

    Raises
    ------
    ValueError
        If a layer cannot take what it is given: says which, what came and what it needs.
    """
    n_weighted = sum(_has_weights(layer) for layer in layers)
    numbered = part == "cell" or n_weighted != 1
    return _place(part, part, layers, given, numbered)


def _place(
    where: str, name: str, layers: tuple[Layer, ...], given: Shape, numbered: bool
) -> tuple[Part, Shape]:
    placed, number = [], 0
    for i, layer in enumerate(layers):
        here = f"{where}[{i}], {layer!r:.200}"
        own = f"{name}.{number}" if numbered else name
        number += _has_weights(layer)
        inner: Part = ()
        if isinstance(layer, Residual):
            inner, _ = _place(f"{where}[{i}].layers", own, layer.layers, given, True)
        try:
            gives = layer.shape(given)
        except ValueError as error:
            raise ValueError(f"{here}: {error}; it is given shape {given}.") from None
        if math.prod(gives) > _LARGEST:
            raise ValueError(f"{here}: it makes shape {gives}, more than 2**31 - 1 values.")
        placed.append(Placed(layer, here, own, given, gives, inner))
        given = gives
    return tuple(placed), given


def _has_weights(layer: Layer) -> bool:
    if isinstance(layer, Residual):
        return True
    return type(layer).parameters is not Layer.parameters


def walk(part: Part) -> Iterator[Placed]:
    """Yield the layers of a part and, after a `Residual`, those inside of it."""
    for placed in part:
        yield placed
        yield from walk(placed.inner)


def placed_parameters(part: Part) -> dict[str, Shape]:
    """Return the shapes of a part's weights by name, in order."""
    return {
        f"{placed.name}.{name}": shape
        for placed in walk(part)
        for name, shape in placed.layer.parameters(placed.given).items()
    }
