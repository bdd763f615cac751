"""Arrays on their way between numpy and Julia: the same bytes, never transposed.

Julia's arrays are in column order, pydeq's numpy arrays in row order. A C-order ``(n, f)`` array is
handed over as its transposed view, which Julia sees as its own ``(f, n)``; what comes back goes the
same way. Each way is one copy of the memory.
"""

from typing import Any

import numpy as np

__all__ = ["from_julia", "julia_view"]


def julia_view(array: Any, dtype: Any) -> np.ndarray:
    """Return `array` with its axes reversed, in column order, as Julia's arrays are.

    Parameters
    ----------
    array : array-like (n, f)
        Or any other number of axes. What is not in C order, or not of the dtype, is copied.
    dtype : numpy.dtype

    Returns
    -------
    ndarray (f, n)
        A view where it can be.
    """
    return np.ascontiguousarray(array, dtype).T


def from_julia(value: Any) -> np.ndarray:
    """Return a numpy copy, in C order, of a Julia array, its axes reversed.

    Parameters
    ----------
    value : juliacall.ArrayValue (f, n)
        Or any other number of axes.

    Returns
    -------
    ndarray (n, f)
    """
    return np.array(np.asarray(value).T, order="C", copy=True)
