"""Layers that are made of layers: one after another, or side by side at several resolutions."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from pydeq.layers.base import Layer, image
from pydeq.layers.single import Conv
from pydeq.shapes import Shape, is_several

__all__ = ["Branches", "Fuse", "Residual"]

_DEEPEST = 8
"""How many of these layers may stand one inside the other."""


@final
@dataclass(frozen=True)
class Residual(Layer):
    """What its layers make of x, plus x.

    In a contractive cell the sum is scaled as a weight is: see
    :class:`pydeq.model.spec.ModelSpec`.

    Parameters
    ----------
    layers : sequence of Layer
        Together they keep the shape.

    Examples
    --------
    >>> from pydeq.layers import Activation, Conv, Residual
    >>> Residual([Conv(16), Activation("relu"), Conv(16)]).shape((16, 7, 7))
    (16, 7, 7)
    """

    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _checked("Residual: layers", self.layers, 1))
        _check_depth("Residual", self.layers)

    def shape(self, given: Shape) -> Shape:
        """See :meth:`Layer.shape`."""
        made = _shape(self.layers, given)
        if made != given:
            raise ValueError(f"its layers must keep the shape, and they make {made} of it")
        return given


@final
@dataclass(frozen=True)
class Branches(Layer):
    """Layers side by side: each list of them makes an image, or a row, of its own.

    Of one image each branch is given all of it; of several each is given its own, in order. Its
    images stay apart and may differ in channels and resolution: a state of several scales (Bai,
    Koltun and Kolter 2020, Multiscale Deep Equilibrium Models).

    In a contractive cell what it gives is scaled as a weight is: see
    :class:`pydeq.model.spec.ModelSpec`.

    Parameters
    ----------
    branches : sequence of sequences of Layer
        At least two. An empty one passes on what it is given.

    Examples
    --------
    >>> from pydeq.layers import Branches, Conv
    >>> Branches([[Conv(8)], [Conv(16, stride=2)]]).shape((1, 7, 7))
    ((8, 7, 7), (16, 4, 4))
    """

    branches: tuple[tuple[Layer, ...], ...]

    def __post_init__(self) -> None:
        given: Any = self.branches
        if not isinstance(given, list | tuple) or len(given) < 2:
            raise ValueError(
                f"Branches: branches must be a sequence of two or more sequences of layers; got "
                f"{given!r:.300}."
            )
        branches = tuple(_checked(f"Branches: branches[{k}]", b, 0) for k, b in enumerate(given))
        object.__setattr__(self, "branches", branches)
        _check_depth("Branches", [layer for branch in branches for layer in branch])

    def shape(self, given: Shape) -> Shape:
        """See :meth:`Layer.shape`."""
        pairs = zip(self.branches, self.given_to_each(given), strict=True)
        made = tuple(_shape(branch, own) for branch, own in pairs)
        for k, shape in enumerate(made):
            if is_several(shape):
                raise ValueError(
                    f"each branch must give one image or row, and branches[{k}] gives {shape}"
                )
        return made

    def given_to_each(self, given: Shape) -> tuple[Shape, ...]:
        """Return the shape that each branch is given."""
        if not is_several(given):
            return (given,) * len(self.branches)
        if len(given) != len(self.branches):
            raise ValueError(
                f"it has {len(self.branches)} branches, and needs one image for all or one for "
                f"each, not {len(given)}"
            )
        return given


class FusedPath(NamedTuple):
    """What one image of a `Fuse` gets from another."""

    target: int
    source: int
    step: int
    """How many times as high and wide the finer one of the two is."""
    conv: Conv
    """What the source goes through first; of a coarser one each pixel is then repeated."""


@final
@dataclass(frozen=True)
class Fuse(Layer):
    """Bring images of several resolutions together: each becomes a sum of all, at its own.

    Each image is as it was, plus something of every other. A finer one, `step` times as high and
    wide, goes through a convolution with that stride and a kernel of ``step + 1``. A coarser one
    goes through a convolution of 1 x 1, and each of its pixels is repeated ``step`` times in height
    and width (Bai, Koltun and Kolter 2020, section 3.2). The channels may differ.

    In a contractive cell what it gives is scaled as a weight is: see
    :class:`pydeq.model.spec.ModelSpec`.

    Examples
    --------
    >>> from pydeq.layers import Fuse
    >>> Fuse().shape(((8, 7, 7), (16, 4, 4)))
    ((8, 7, 7), (16, 4, 4))
    """

    def shape(self, given: Shape) -> Shape:
        """See :meth:`Layer.shape`."""
        self.paths(given)
        return given

    def paths(self, given: Shape) -> list[FusedPath]:
        """Return what goes from image to image, target by target."""
        if not is_several(given):
            raise ValueError(
                "it needs several images, shape ((channels, height, width), ...); Branches([...]) "
                "makes them"
            )
        images = [image(shape) for shape in given]
        places = range(len(images))
        return [_path(images, i, j) for i in places for j in places if i != j]


def _path(images: list[tuple[int, int, int]], target: int, source: int) -> FusedPath:
    first, second = sorted((target, source))
    (_, height, width), (_, low, narrow) = images[first], images[second]
    steps = range(2, max(height, width) + 1)
    sizes = ((s, -(-height // s), -(-width // s)) for s in steps)
    step = next((s for s, h, w in sizes if (h, w) == (low, narrow)), None)
    if step is None:
        raise ValueError(
            "it needs images from the finest to the coarsest, each as high and wide as the ones "
            "before it divided by a whole number and rounded up, as a stride makes them; of "
            f"{height} x {width} none makes {low} x {narrow}"
        )
    channels = images[target][0]
    if target == first:
        return FusedPath(target, source, step, Conv(channels, 1))
    kernel = min(step + 1, height, width)
    return FusedPath(target, source, step, Conv(channels, kernel, stride=step))


def _shape(layers: Iterable[Layer], given: Shape) -> Shape:
    for layer in layers:
        given = layer.shape(given)
    return given


def _checked(name: str, given: Any, least: int) -> tuple[Layer, ...]:
    """Return a sequence of layers, which may be one, as a tuple."""
    layers = (given,) if isinstance(given, Layer) else given
    if not isinstance(layers, list | tuple) or len(layers) < least:
        raise ValueError(f"{name} must be a sequence of layers; got {layers!r:.300}.")
    for place, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise ValueError(f"{name}[{place}] must be a layer; got {layer!r:.300}.")
    return tuple(layers)


def _check_depth(name: str, layers: Iterable[Layer]) -> None:
    if _depth(layers) >= _DEEPEST:
        raise ValueError(
            f"{name}: at most {_DEEPEST} layers of layers may stand one inside the other."
        )


def _depth(layers: Iterable[Layer]) -> int:
    deepest = 0
    for layer in layers:
        if isinstance(layer, Residual):
            deepest = max(deepest, 1 + _depth(layer.layers))
        elif isinstance(layer, Branches):
            deepest = max(deepest, *(1 + _depth(branch) for branch in layer.branches))
    return deepest
