"""Layers in their places: which shape each is given and gives, and what its weights are called."""

from collections.abc import Iterator
from typing import NamedTuple

from pydeq.layers import Branches, Fuse, Layer, Residual
from pydeq.shapes import Shape, array_shape, n_values

__all__ = ["Network", "Part", "Placed", "place", "placed_parameters", "walk"]

_OF_LAYERS = (Residual, Branches, Fuse)

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
    parts: "tuple[tuple[Placed, ...], ...]" = ()
    """The layers inside it: those of a `Residual`, of each of the `Branches`, and what each of a
    `Fuse`'s paths goes through."""

    @property
    def has_weights(self) -> bool:
        """Whether it has weights, or is made of layers."""
        return _has_weights(self.layer)

    @property
    def has_factor(self) -> bool:
        """Whether it is made of layers: a contractive cell scales what it gives, not these."""
        return isinstance(self.layer, _OF_LAYERS)

    @property
    def takes(self) -> tuple[int, ...]:
        """The shape of the array of a sample that it is given."""
        return array_shape(self.given)


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
    ``cell.1.0``. In `Branches` they do so in each: ``cell.1.0.0`` is of the first. What image i of
    a `Fuse` gets from image j goes through ``cell.1.i.j``.

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
        try:
            inside = _inside(layer, given)
        except ValueError as error:
            raise _misfit(here, error, given) from None
        parts = tuple(
            _place(f"{where}[{i}]{at}", own + suffix, own_layers, own_given, is_numbered)[0]
            for at, suffix, own_layers, own_given, is_numbered in inside
        )
        try:
            gives = layer.shape(given)
        except ValueError as error:
            raise _misfit(here, error, given) from None
        if n_values(gives) > _LARGEST:
            raise ValueError(f"{here}: it makes shape {gives}, more than 2**31 - 1 values.")
        placed.append(Placed(layer, here, own, given, gives, parts))
        given = gives
    return tuple(placed), given


def _misfit(here: str, error: ValueError, given: Shape) -> ValueError:
    return ValueError(f"{here}: {error}; it is given shape {given}.")


class _Inside(NamedTuple):
    """Layers inside of another: where in it, what their names add, and what they are given."""

    where: str
    suffix: str
    layers: tuple[Layer, ...]
    given: Shape
    numbered: bool = True


def _inside(layer: Layer, given: Shape) -> list[_Inside]:
    if isinstance(layer, Residual):
        return [_Inside(".layers", "", layer.layers, given)]
    if isinstance(layer, Branches):
        each = zip(layer.branches, layer.given_to_each(given), strict=True)
        return [_Inside(f".branches[{k}]", f".{k}", *own) for k, own in enumerate(each)]
    if isinstance(layer, Fuse):
        return [
            _Inside(f", {j} to {i}", f".{i}.{j}", (conv,), given[j], False)
            for i, j, _, conv in layer.paths(given)
        ]
    return []


def _has_weights(layer: Layer) -> bool:
    return isinstance(layer, _OF_LAYERS) or type(layer).parameters is not Layer.parameters


def walk(part: Part) -> Iterator[Placed]:
    """Yield the layers of a part and, after one that is made of layers, those inside of it."""
    for placed in part:
        yield placed
        for inside in placed.parts:
            yield from walk(inside)


def placed_parameters(part: Part) -> dict[str, Shape]:
    """Return the shapes of a part's weights by name, in order."""
    return {
        f"{placed.name}.{name}": shape
        for placed in walk(part)
        for name, shape in placed.layer.parameters(placed.given).items()
    }
