"""Arrays on their way between numpy and Julia: the same bytes, never transposed.

Julia's arrays are in column order, pydeq's numpy arrays in row order. So the memory of a C-order
``(n, f)`` array is that of Julia's ``(f, n)``. Julia reads and writes it where it is.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["to_julia"]


def to_julia(array_at: Callable[..., Any], array: np.ndarray) -> Any:
    """Return the memory of an array as an array of Julia's, its axes reversed.

    Parameters
    ----------
    array_at : callable
        PyDEQ's function of that name.
    array : ndarray (n, f)
        In C order, with any number of axes. It must live as long as Julia's array is used.

    Returns
    -------
    juliacall.ArrayValue (f, n)
    """
    return array_at(_name(array.dtype), array.ctypes.data, *reversed(array.shape))


@functools.cache
def _name(dtype: np.dtype) -> str:
    """Return numpy's name of a type, which numpy puts together anew each time."""
    return dtype.name
