"""The parameters as a few vectors: each large one by itself, all others in one.

An optimiser's step compiles in the time that the number of its arrays takes. It runs in the time
that their sizes take, and copying a large one into a longer vector is a good part of that.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pydeq.model import ModelSpec, parameter_shapes

__all__ = ["Named", "Vectors", "from_vectors", "groups", "marks", "to_vectors"]

LARGE = 1 << 15
"""Elements from which a parameter is a vector by itself."""

Named = dict[str, jax.Array]
"""Arrays by the names of the parameters, in their shapes."""

Vectors = tuple[jax.Array, ...]
"""One array ``(size,)`` for each of `groups`."""


def groups(model: ModelSpec) -> list[list[str]]:
    """Return the names in each vector; the last has all that are not large."""
    sizes = {name: int(np.prod(shape)) for name, shape in parameter_shapes(model).items()}
    alone = [[name] for name, size in sizes.items() if size >= LARGE]
    return [*alone, [name for name, size in sizes.items() if size < LARGE]]


def to_vectors(model: ModelSpec, named: Mapping[str, jax.Array]) -> Vectors:
    """Return arrays by name as vectors."""
    return tuple(_joined([named[name].ravel() for name in group]) for group in groups(model))


def _joined(arrays: list[jax.Array]) -> jax.Array:
    if len(arrays) == 1:
        return arrays[0]
    # XLA's concatenation on a CPU takes four times as long as these writes in place.
    result = jnp.zeros(sum(array.size for array in arrays), arrays[0].dtype)
    start = 0
    for array in arrays:
        result = jax.lax.dynamic_update_slice(result, array, (start,))
        start += array.size
    return result


def from_vectors(model: ModelSpec, vectors: tuple[Any, ...]) -> dict[str, Any]:
    """Return vectors, of JAX or numpy, as arrays by name, in the order of `parameter_shapes`."""
    shapes = parameter_shapes(model)
    named = {}
    for group, vector in zip(groups(model), vectors, strict=True):
        start = 0
        for name in group:
            end = start + int(np.prod(shapes[name]))
            named[name] = vector[start:end].reshape(shapes[name])
            start = end
    return {name: named[name] for name in shapes}


def marks(model: ModelSpec, which: Callable[[str], bool]) -> list[np.ndarray]:
    """Return which elements of each vector belong to a name that is meant: bool ``(size,)``.

    A vector of a single name has one mark for all, ``()``.
    """
    shapes = parameter_shapes(model)
    return [
        np.array(which(group[0]))
        if len(group) == 1
        else np.concatenate([np.full(int(np.prod(shapes[n])), which(n)) for n in group])
        for group in groups(model)
    ]
