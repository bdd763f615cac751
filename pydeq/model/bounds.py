"""Upper bounds of what layers can stretch, in numpy float64.

A convolution with circular padding is, at each frequency of the image's torus, a product with a
matrix ``(out, in)``; its spectral norm is the largest of theirs (Sedghi, Gupta and Long 2019). With
zero padding it is a part of the circular one of an image with ``kernel_size - 1`` pixels more, of
which all but the image are 0: so its norm is at most that one's, and a stride, which drops pixels,
does not raise it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pydeq import layers
from pydeq.model.forward import FUNCTIONS
from pydeq.model.network import Part, Placed
from pydeq.shapes import is_several

__all__ = [
    "fused",
    "lipschitz",
    "log_scaling_bounds",
    "log_schatten_norm",
    "singular_values",
    "torus",
]

SCHATTEN_P = 128
"""||G^32||_F^(1/64) with G = W^T W is the Schatten norm of W of this order (see `ModelSpec`)."""

Params = Mapping[str, np.ndarray]


def torus(placed: Placed) -> tuple[int, int]:
    """Return height and width of the torus whose frequencies bound a `Conv`."""
    conv: Any = placed.layer
    more = 0 if conv.padding == "circular" else conv.kernel_size - 1
    return placed.given[1] + more, placed.given[2] + more


def lipschitz(part: Part, params: Params) -> float:
    """Return an upper bound of the Lipschitz constant of layers as they act.

    It is inf where there is none, and NaN for weights that are not finite. Rounding is not in it.
    """
    bound = 1.0
    for placed in part:
        layer = placed.layer
        if isinstance(layer, layers.Dense | layers.Conv):
            bound *= float(_values(placed, params).max())
        elif isinstance(layer, layers.Activation):
            bound *= FUNCTIONS[layer.name][2]
        elif isinstance(layer, layers.MeanPool):
            bound /= layer.size
        elif placed.has_factor:
            inside = [lipschitz(part, params) for part in placed.parts]
            bound *= float(params.get(f"{placed.name}.factor", 1.0)) * _of_parts(placed, inside)
        elif isinstance(layer, layers.GroupNorm):
            return np.inf
    return bound


def log_scaling_bounds(part: Part, params: Params) -> list[float]:
    """Return the logarithms of the bounds that a contractive cell is scaled by, one a layer.

    See :class:`pydeq.model.spec.ModelSpec`; it is -inf for weights of 0.
    """
    bounds = []
    for placed in part:
        if isinstance(placed.layer, layers.Dense | layers.Conv):
            matrices = np.atleast_2d(_values(placed, params))
            bounds.append(max(log_schatten_norm(values) for values in matrices))
        elif placed.has_factor:
            inside = [sum(log_scaling_bounds(part, params)) for part in placed.parts]
            bounds.append(_log_of_parts(placed, inside))
    return bounds


def _of_parts(placed: Placed, inside: list[float]) -> float:
    """Return the bound of a layer of layers from those of its parts."""
    layer = placed.layer
    if isinstance(layer, layers.Residual):
        return 1 + inside[0]
    if isinstance(layer, layers.Branches):
        return float(np.max(inside) if is_several(placed.given) else np.linalg.norm(inside))
    return float(singular_values(fused(placed, np.array(inside), 1.0))[0])


def _log_of_parts(placed: Placed, inside: list[float]) -> float:
    """Return the same of logarithms, as a contractive cell is scaled by it."""
    layer = placed.layer
    if isinstance(layer, layers.Residual):
        return float(np.logaddexp(0.0, inside[0]))
    if isinstance(layer, layers.Branches):
        logs = np.array(inside)
        several = is_several(placed.given)
        return float(logs.max() if several else np.logaddexp.reduce(2 * logs) / 2)
    top = float(np.max([0.0, *inside]))
    matrix = fused(placed, np.exp(np.array(inside) - top), np.exp(-top))
    return top + log_schatten_norm(singular_values(matrix))


def fused(placed: Placed, inside: Any, own: Any) -> Any:
    """Return the matrix whose norm bounds a `Fuse`, from the bounds ``(n_paths,)`` of its paths.

    `own` stands on its diagonal. Arrays may be JAX's too.
    """
    fuse: Any = placed.layer
    n, paths = len(placed.given), fuse.paths(placed.given)
    places = np.zeros((len(paths), n, n), inside.dtype)
    for k, path in enumerate(paths):
        # Of a coarser image each pixel is repeated, step times in both directions.
        places[k, path.target, path.source] = path.step if path.target < path.source else 1
    others = (inside @ places.reshape(len(paths), -1)).reshape(n, n)
    return own * np.eye(n, dtype=inside.dtype) + others


def _values(placed: Placed, params: Params) -> np.ndarray:
    """Return singular values, the largest first, ``(k,)``; of a `Conv` at each frequency."""
    weight = params[f"{placed.name}.weight"]
    if isinstance(placed.layer, layers.Dense):
        return singular_values(weight)
    spectrum = np.fft.rfft2(weight, torus(placed)).reshape(*weight.shape[:2], -1)
    return singular_values(np.moveaxis(spectrum, 2, 0))


def singular_values(weight: np.ndarray) -> np.ndarray:
    """Return them, the largest first; NaN, which reaches all that follows, if not finite."""
    if not np.isfinite(weight).all():
        return np.full(1, np.nan)
    return np.linalg.svd(weight, compute_uv=False)


def log_schatten_norm(values: np.ndarray) -> float:
    """Return log of ``(sum_k s_k^p)^(1/p)`` of the singular values s, the largest first."""
    if values[0] == 0:
        return -np.inf
    return float(
        np.log(values[0]) + np.log(((values / values[0]) ** SCHATTEN_P).sum()) / SCHATTEN_P
    )
