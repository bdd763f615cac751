"""A model's layers, described to Julia: names and numbers, no arrays."""

import dataclasses
from typing import Any

from pydeq import layers
from pydeq.cell_function import CellFunction
from pydeq.engines.julia.runtime import Julia
from pydeq.model import ModelSpec, Part, Placed
from pydeq.shapes import Shape, array_shape, is_several

__all__ = ["describe"]


def describe(julia: Julia, model: ModelSpec) -> Any:
    """Return encoder, cell, decoder and first guess as PyDEQ's networks of layers.

    What is not given as layers is None: Julia has it, as other models do, of dense layers.
    """
    network = model.network
    state, output = array_shape(network.state_shape), (model.n_outputs,)
    encoder = cell = decoder = init = None
    if model.has_layers:
        encoder = _network(julia, network.encoder, network.input_shape, state)
        decoder = _network(julia, network.decoder, state, output)
    if isinstance(model.cell, CellFunction):
        cell = julia.pydeq.lux_cell(model.cell.function, _shape(julia, state))
    elif model.cell is not None:
        cell = _network(julia, network.cell, state, state)
    if not isinstance(model.init, str):
        init = _network(julia, network.init, state, state)
    parts = (encoder, cell, decoder, init)
    return None if parts == (None,) * 4 else julia.vector(*parts)


def _network(julia: Julia, part: Part, given: Shape, gives: Shape) -> Any:
    own = _layers(julia, part)
    return julia.pydeq.described_network(own, _shape(julia, given), _shape(julia, gives))


def _layers(julia: Julia, part: Part) -> Any:
    return julia.vector(*[_layer(julia, placed) for placed in part])


def _layer(julia: Julia, placed: Placed) -> Any:
    shapes = _shape(julia, placed.takes), _shape(julia, array_shape(placed.gives))
    kind = type(placed.layer).__name__
    options = _options(julia, placed)
    names, values = julia.strings(*options), julia.vector(*options.values())
    return julia.pydeq.described_layer(kind, placed.name, *shapes, names, values)


def _options(julia: Julia, placed: Placed) -> dict[str, Any]:
    """Return the description's fields, but for those that the shapes say."""
    layer = placed.layer
    if isinstance(layer, layers.Residual):
        return {"layers": _layers(julia, placed.parts[0])}
    if isinstance(layer, layers.Branches | layers.Fuse):
        return _of_images(julia, placed)
    if isinstance(layer, layers.Activation):
        return {"activation": layer.name}
    fields: Any = dataclasses.asdict(layer)  # pyright: ignore[reportArgumentType]
    return {name: value for name, value in fields.items() if name not in ("n_units", "channels")}


def _of_images(julia: Julia, placed: Placed) -> dict[str, Any]:
    """Return the shapes of several images that it is given in a row, and what they go through.

    ``images`` is empty where all `Branches` are given the same; ``made`` is what each of them
    makes. What a `Fuse` gives image ``target`` from image ``source``, counted from 0, goes through
    ``layer``; of a coarser one each pixel is then repeated ``step`` times in height and width.
    """
    several = placed.given if is_several(placed.given) else ()
    images = julia.vector(*[_shape(julia, image) for image in several])
    if isinstance(placed.layer, layers.Branches):
        branches = [_layers(julia, part) for part in placed.parts]
        made = julia.vector(*[_shape(julia, image) for image in placed.gives])
        return {"images": images, "made": made, "branches": julia.vector(*branches)}
    assert isinstance(placed.layer, layers.Fuse)
    paths = zip(placed.layer.paths(placed.given), placed.parts, strict=True)
    said = [
        julia.vector(path.target, path.source, path.step, _layer(julia, conv))
        for path, (conv,) in paths
    ]
    return {"images": images, "paths": julia.vector(*said)}


def _shape(julia: Julia, shape: Shape) -> Any:
    """Return a shape in Julia's order: the same bytes, the other way round."""
    return julia.integers(*reversed(shape))
