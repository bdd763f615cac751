"""The rightmost eigenvalue of many large matrices at once, by Arnoldi's method without restarts."""

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["rightmost_eigenvalues"]

LOOKS = (24, 36, 48, 64, 96)
"""Dimensions of the Krylov spaces at which the eigenvalues are looked at."""


def rightmost_eigenvalues(
    product: Callable[[np.ndarray, np.ndarray], np.ndarray],
    start: np.ndarray,
    n: int,
    tolerance: float,
) -> np.ndarray:
    """Return the largest real part of the eigenvalues of each of n matrices, NaN if not found.

    It is that of a Ritz value whose residual is at most `tolerance` times its size (Saad 2011,
    chapter 6).

    Parameters
    ----------
    product : callable
        ``product(rows, v)`` returns the products of the matrices at `rows` ``(m,)`` with the
        vectors v ``(m, width)``.
    start : ndarray (width,)
        Where every search begins.
    n : int
    tolerance : float

    Returns
    -------
    ndarray (n,)
    """
    most, width = min(LOOKS[-1], len(start)), len(start)
    found, rows = np.full(n, np.nan), np.arange(n)
    basis = np.zeros((n, most + 1, width))
    hessenberg = np.zeros((n, most + 1, most))
    basis[:, 0] = start / np.linalg.norm(start)
    for k in range(most):
        v = product(rows, basis[:, k])
        size = np.linalg.norm(v, axis=1)
        for _ in range(2):  # once leaves what is not orthogonal
            share = np.matmul(basis[:, : k + 1], v[:, :, None])[:, :, 0]
            v = v - np.matmul(share[:, None, :], basis[:, : k + 1])[:, 0]
            hessenberg[:, : k + 1, k] += share
        rest = np.linalg.norm(v, axis=1)
        hessenberg[:, k + 1, k] = rest
        basis[:, k + 1] = v / np.where(rest > 0, rest, 1)[:, None]
        goes_on = rest > 1e-12 * size  # else the space is invariant, and its end is not looked for
        if k + 1 in LOOKS:
            values, bounds = _ritz(hessenberg[:, : k + 1, : k + 1], rest)
            done = bounds <= tolerance
            found[rows[done]] = values[done]
            goes_on &= ~done
        if not goes_on.all():
            rows, basis, hessenberg = rows[goes_on], basis[goes_on], hessenberg[goes_on]
        if not len(rows):
            break
    return found


def _ritz(hessenberg: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the real part of each matrix's rightmost Ritz value, and its relative residual."""
    found: Any = np.linalg.eig(hessenberg)
    values, vectors = found
    at = values.real.argmax(axis=1)[:, None]
    last = np.take_along_axis(vectors[:, -1, :], at, 1)[:, 0]
    rightmost: Any = np.take_along_axis(values, at, 1)[:, 0]
    size = np.maximum(np.abs(rightmost), np.finfo(np.float64).tiny)
    return rightmost.real, rest * np.abs(last) / size
