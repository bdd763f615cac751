"""Shapes of samples on their way through layers: of rows, of images, and of several images."""

import math
from typing import Any

__all__ = ["Shape", "array_shape", "is_several", "n_values"]

Shape = tuple[Any, ...]
"""Of one sample: ``(n,)`` of values in a row, ``(channels, height, width)`` of an image, or such
shapes, ``((8, 7, 7), (8, 4, 4))``, of several; in arrays these stand in one row, in this order."""


def is_several(shape: Shape) -> bool:
    """Whether it is the shape of several images or rows."""
    return isinstance(shape[0], tuple)


def n_values(shape: Shape) -> int:
    """Return the number of values of a shape."""
    return sum(map(math.prod, shape)) if is_several(shape) else math.prod(shape)


def array_shape(shape: Shape) -> tuple[int, ...]:
    """Return the shape that a sample has in an array: a row where it is several."""
    return (n_values(shape),) if is_several(shape) else shape
