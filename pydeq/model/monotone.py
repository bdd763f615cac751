"""The monotone cell that is a convolution, in numpy float64: kernel, derivative, rounding.

f(u, h) = act(W u + h + b) with W = -A^T A + B - B^T, A and B being convolutions of an image in an
endless plane of zeros, or on its torus (Winston and Kolter 2020, section 4 and appendix). Both ways
W is the convolution with one kernel, twice as wide: an image in a plane is given, and what comes
out beside the image is dropped, so that I - W stays strongly monotone with constant 1.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from pydeq import layers
from pydeq.model.bounds import lipschitz
from pydeq.model.forward import FUNCTIONS, forward
from pydeq.model.network import Placed
from pydeq.model.params import Params
from pydeq.model.spec import ModelSpec

__all__ = [
    "MonotoneConv",
    "MonotoneConvLinearization",
    "composed",
    "effective",
    "linearize_monotone_conv",
    "monotone_conv",
]


class MonotoneConv(NamedTuple):
    """The cell as it acts."""

    conv: Placed
    activation: str
    params: Params  # of the convolution W
    norm: float  # a bound of ||W||_2
    size: float  # a bound of the norm of |W|
    composing: float  # bound of the rounding error of W, ||.||_2

    @property
    def lipschitz(self) -> float:
        """An upper bound of the cell's Lipschitz constant."""
        return self.norm * FUNCTIONS[self.activation][2]

    def product(self, z: np.ndarray) -> np.ndarray:
        """Return W z of rows ``(n, n_state)``."""
        image = z.reshape(-1, *self.conv.given)
        bias = np.zeros_like(self.params[f"{self.conv.name}.bias"])
        made = forward((self.conv,), {**self.params, f"{self.conv.name}.bias": bias}, image)
        return made.reshape(z.shape)


class MonotoneConvLinearization(NamedTuple):
    """The cell at the points (z, h) of n samples, and its derivative there."""

    cell: MonotoneConv
    value: np.ndarray  # f(z, h) (n, n_state)
    error: np.ndarray  # bound of the value's rounding error, ||.||_2 (n,)
    slope: np.ndarray | None  # derivative of the activation (n, n_state); None: 1

    def at(self, rows: np.ndarray) -> "MonotoneConvLinearization":
        """Return those samples."""
        slope = None if self.slope is None else self.slope[rows]
        return self._replace(value=self.value[rows], error=self.error[rows], slope=slope)

    def jvp(self, tangent: np.ndarray) -> np.ndarray:
        """Return df/dz t of the tangents t ``(n, n_state)``, or of k each, ``(n, k, n_state)``."""
        pushed = self.cell.product(tangent)
        if self.slope is None:
            return pushed
        return pushed * (self.slope if tangent.ndim == 2 else self.slope[:, None, :])

    def jacobians(self) -> np.ndarray:
        """Return the transposed Jacobians J[k, i, j] = df_j/dz_i, ``(n, n_state, n_state)``."""
        n, width = self.value.shape
        return self.jvp(np.broadcast_to(np.eye(width), (n, width, width)))

    def rank_bound(self) -> int:
        """Return an upper bound of the rank of df/dz at one sample, the only one here."""
        return self.value.shape[1] if self.slope is None else int(np.count_nonzero(self.slope))


def effective(conv: Placed) -> Placed:
    """Return the convolution W in the place of the one that says how large A and B are."""
    layer: Any = conv.layer
    return conv._replace(layer=dataclasses.replace(layer, kernel_size=2 * layer.kernel_size - 1))


def composed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the kernel ``(c, c, 2k - 1, 2k - 1)`` of W from those of A and B ``(c, c, k, k)``."""
    k = a.shape[2]
    square = np.zeros((*a.shape[:2], 2 * k - 1, 2 * k - 1))
    skew = np.zeros_like(square)
    for i in range(k):
        for j in range(k):
            # The pixel that A sees at (i, j), seen again by all of A.
            rows, columns = slice(k - 1 - i, 2 * k - 1 - i), slice(k - 1 - j, 2 * k - 1 - j)
            square[:, :, rows, columns] += np.einsum("om,oixy->mixy", a[:, :, i, j], a)
    first = k - 1 - (k - 1) // 2
    skew[:, :, first : first + k, first : first + k] = b
    return skew - skew.swapaxes(0, 1)[:, :, ::-1, ::-1] - square


def monotone_conv(model: ModelSpec, params: Params, unit: float) -> MonotoneConv:
    """Return the cell as it acts; `unit` is the relative error of a product."""
    conv, activation = model.network.cell
    a, b, bias = (
        np.asarray(params[f"{conv.name}.{n}"], np.float64) for n in ("weight", "skew", "bias")
    )
    conv = effective(conv)
    with np.errstate(over="ignore", invalid="ignore"):  # of weights that are not finite
        acting = {f"{conv.name}.weight": composed(a, b), f"{conv.name}.bias": bias}
        # Each of the three terms is no larger than this; their difference is rounded by that much.
        terms = _norm_of_size(composed(np.abs(a), 0 * b)) + 2 * _norm_of_size(b)
    assert isinstance(activation.layer, layers.Activation)
    norm = (1 + unit) * lipschitz((conv,), acting)
    size = _norm_of_size(acting[f"{conv.name}.weight"])
    return MonotoneConv(conv, activation.layer.name, acting, norm, size, unit * terms)


def _norm_of_size(kernel: np.ndarray) -> float:
    """Return a bound of the norm of the convolution with the absolute values of a kernel."""
    rows, columns = (np.abs(kernel).sum(axis=axes).max() for axes in ((1, 2, 3), (0, 2, 3)))
    return float(np.sqrt(rows * columns))


def linearize_monotone_conv(
    cell: MonotoneConv, h: np.ndarray, error: np.ndarray, state: np.ndarray, unit: float
) -> MonotoneConvLinearization:
    """Return the cell and its derivative at ``(n, n_state)`` states; `error` bounds that of h."""
    act, slope, _ = FUNCTIONS[cell.activation]
    z = np.asarray(state, np.float64)
    made = forward((cell.conv,), cell.params, z.reshape(-1, *cell.conv.given)).reshape(z.shape)
    norm, bias = np.linalg.norm(z, axis=1), cell.params[f"{cell.conv.name}.bias"]
    size = np.sqrt(z.shape[1] / len(bias)) * np.linalg.norm(bias)
    error = error + cell.composing * norm + unit * np.linalg.norm(h, axis=1)
    error = error + unit * (cell.size * norm + size)
    value = act(made + h)
    error = error + unit * np.linalg.norm(value, axis=1)
    return MonotoneConvLinearization(cell, value, error, None if slope is None else slope(value))
