"""The cell f in numpy float64, as it acts: its value, its derivative, bounds of its rounding.

Made from the stored weights, whatever the engine and the dtype of the model, so that an engine is
checked by something that is not itself. The model is taken in exact arithmetic: an engine's
rounding, that of its scaling of a contractive cell included, is not in here.

To add a cell, say in `acting_cell` which layers it has, and in `_injected` how h enters the first
of them.
"""

from typing import NamedTuple

import numpy as np
import scipy.special

from pydeq.model.params import Params
from pydeq.model.spec import ModelSpec

__all__ = ["FUNCTIONS", "Cell", "Linearization", "acting_cell", "linearize", "rounding"]

SCHATTEN_P = 128
"""||G^32||_F^(1/64) with G = W^T W is the Schatten norm of W of this order (see `ModelSpec`)."""

FUNCTIONS = {
    "identity": (lambda v: v, None, 1.0),
    "logistic": (scipy.special.expit, lambda a: a * (1 - a), 0.25),
    "tanh": (np.tanh, lambda a: 1 - a**2, 1.0),
    "relu": (lambda v: np.maximum(v, 0), lambda a: (a > 0).astype(a.dtype), 1.0),
}
"""Of each activation: its value, its derivative as a function of the value, its Lipschitz constant.

A derivative of None is 1.
"""


class Cell(NamedTuple):
    """Layers ``a_(i+1) = activation_i(a_i @ W_i + b_i)`` in float64, as they act."""

    weights: list[np.ndarray]  # W_i (n_in, n_out)
    biases: list[np.ndarray]  # b_i (n_out,)
    activations: list[str]
    norms: list[float]  # upper bounds of ||W_i||_2
    composing: float = 0.0  # bound of the rounding error of W_0, ||.||_2, where it is composed


class Linearization(NamedTuple):
    """The cell at the points (z, h) of n samples, and its derivative there."""

    cell: Cell
    value: np.ndarray  # f(z, h) (n, n_state)
    error: np.ndarray  # bound of the value's rounding error, ||.||_2 (n,)
    slopes: list[np.ndarray | None]  # derivatives of the activations (n, n_out); None: 1

    def at(self, rows: np.ndarray) -> "Linearization":
        """Return those samples."""
        slopes = [None if slope is None else slope[rows] for slope in self.slopes]
        return Linearization(self.cell, self.value[rows], self.error[rows], slopes)

    def jvp(self, tangent: np.ndarray) -> np.ndarray:
        """Return df/dz t of the tangents t ``(n, n_state)``, or of k each, ``(n, k, n_state)``."""
        for weight, slope in zip(self.cell.weights, self.slopes, strict=True):
            tangent = tangent @ weight
            if slope is not None:
                tangent = tangent * (slope if tangent.ndim == 2 else slope[:, None, :])
        return tangent

    def jacobians(self) -> np.ndarray:
        """Return the transposed Jacobians J[k, i, j] = df_j/dz_i, ``(n, n_state, n_state)``."""
        n, width = self.value.shape
        return self.jvp(np.broadcast_to(np.eye(width), (n, width, width)))

    def rank_bound(self) -> int:
        """Return an upper bound of the rank of df/dz at one sample, the only one here."""
        ranks = [min(weight.shape) for weight in self.cell.weights]
        ranks += [np.count_nonzero(slope) for slope in self.slopes if slope is not None]
        return min(ranks)


def acting_cell(model: ModelSpec, params: Params) -> Cell:
    """Return the cell's layers as they act: scaled if contractive, composed if monotone."""
    if model.stability == "monotone":
        return _monotone_cell(model, params)
    n_layers = len(model.hidden_layer_sizes) + 1
    weights = [np.asarray(params[f"cell.{i}.weight"], np.float64) for i in range(n_layers)]
    biases = [np.asarray(params[f"cell.{i}.bias"], np.float64) for i in range(n_layers)]
    values = [_singular_values(weight) for weight in weights]
    scale = 1.0
    if model.stability == "contractive" and all(s[0] > 0 for s in values):
        log_product = sum(map(_log_schatten_norm, values))
        scale = np.exp(min(0.0, (np.log(model.contraction) - log_product) / n_layers))
    activations = [model.activation] * (n_layers - 1) + ["identity"]
    norms = [(1 + rounding(model)) * scale * float(s[0]) for s in values]
    return Cell([scale * weight for weight in weights], biases, activations, norms)


def _monotone_cell(model: ModelSpec, params: Params) -> Cell:
    a, b, bias = (
        np.asarray(params[f"cell.0.{name}"], np.float64) for name in ("weight", "skew", "bias")
    )
    with np.errstate(over="ignore", invalid="ignore"):  # of weights that are not finite
        weight = (b - b.T) - a @ a.T  # the difference is exact on the diagonal
        size = np.linalg.norm(a) ** 2 + 2 * np.linalg.norm(b)
    unit = rounding(model)
    norm = (1 + unit) * float(_singular_values(weight)[0])
    return Cell([weight], [bias], [model.activation], [norm], unit * float(size))


def _singular_values(weight: np.ndarray) -> np.ndarray:
    """Return them, the largest first; NaN, which reaches all that follows, if not finite."""
    if not np.isfinite(weight).all():
        return np.full(1, np.nan)
    return np.linalg.svd(weight, compute_uv=False)


def _log_schatten_norm(values: np.ndarray) -> float:
    """Return log of ``(sum_k s_k^p)^(1/p)`` of the singular values s, the largest first."""
    return np.log(values[0]) + np.log(((values / values[0]) ** SCHATTEN_P).sum()) / SCHATTEN_P


def _injected(model: ModelSpec, params: Params, cell: Cell, x: np.ndarray):
    """Return what h adds to ``z @ W_0`` ``(n, n_out)``, and a bound of its rounding error ``(n,)``.

    The cell is an MLP of z + h, so that this is ``h @ W_0 + b_0``; but ``h + b_0`` in the monotone
    cell.
    """
    h, error = np.asarray(x, np.float64), np.zeros(len(x))
    if model.n_state is not None:
        weight, bias = (
            np.asarray(params[f"encoder.{name}"], np.float64) for name in ("weight", "bias")
        )
        error = rounding(model) * _size(h, weight, bias)
        h = h @ weight + bias
    if model.stability == "monotone":
        return h + cell.biases[0], error + rounding(model) * np.linalg.norm(h, axis=1)
    error = cell.norms[0] * error + rounding(model) * _size(h, cell.weights[0], cell.biases[0])
    return h @ cell.weights[0] + cell.biases[0], error


def linearize(
    model: ModelSpec, params: Params, cell: Cell, x: np.ndarray, state: np.ndarray
) -> Linearization:
    """Return the cell and its derivative at the states ``(n, n_state)``."""
    a, slopes = np.asarray(state, np.float64), []
    unit = rounding(model)
    with np.errstate(over="ignore", invalid="ignore"):  # of states that are not finite
        injected, error = _injected(model, params, cell, x)
        for i, (weight, bias, activation) in enumerate(
            zip(cell.weights, cell.biases, cell.activations, strict=True)
        ):
            if i == 0:
                error = error + unit * _size(a, weight, injected)
                error = error + cell.composing * np.linalg.norm(a, axis=1)
                a = a @ weight + injected
            else:
                error = cell.norms[i] * error + unit * _size(a, weight, bias)
                a = a @ weight + bias
            act, slope, _ = FUNCTIONS[activation]
            a = act(a)
            error = error + unit * np.linalg.norm(a, axis=1)
            slopes.append(None if slope is None else slope(a))
    return Linearization(cell, a, error, slopes)


def rounding(model: ModelSpec) -> float:
    """Return a generous relative error of a product with a weight, scaled weights included."""
    # n eps bounds that of an inner product of length n, and as much again that of the scale.
    return 4 * max(model.n_features, *model.cell_widths) * float(np.finfo(np.float64).eps)


def _size(a: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return a bound of ``|| |a| |weight| + |bias| ||_2``, which rounding is relative to, (n,)."""
    return np.linalg.norm(a, axis=1) * np.linalg.norm(weight) + np.linalg.norm(bias, axis=-1)
