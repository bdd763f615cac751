"""The cell f in numpy float64, as it acts: its value, its derivative, bounds of its rounding.

Made from the stored weights, whatever the engine and the dtype of the model, so that an engine is
checked by something that is not itself. The model is taken in exact arithmetic: an engine's
rounding, that of its scaling of a contractive cell included, is not in here.

To add a cell, say in `acting_cell` which layers it has, and in `_injected` how h enters the first
of them.
"""

import math
from typing import NamedTuple

import numpy as np

from pydeq.model.bounds import log_schatten_norm, singular_values
from pydeq.model.forward import FUNCTIONS
from pydeq.model.layered import (
    LayeredCell,
    LayeredLinearization,
    layered_cell,
    linearize_layers,
    with_error,
)
from pydeq.model.monotone import (
    MonotoneConv,
    MonotoneConvLinearization,
    linearize_monotone_conv,
    monotone_conv,
)
from pydeq.model.network import walk
from pydeq.model.params import Params
from pydeq.model.spec import ModelSpec

__all__ = ["AnyCell", "AnyLinearization", "Cell", "acting_cell", "linearize", "rounding"]


class Cell(NamedTuple):
    """Layers ``a_(i+1) = activation_i(a_i @ W_i + b_i)`` in float64, as they act."""

    weights: list[np.ndarray]  # W_i (n_in, n_out)
    biases: list[np.ndarray]  # b_i (n_out,)
    activations: list[str]
    norms: list[float]  # upper bounds of ||W_i||_2
    composing: float = 0.0  # bound of the rounding error of W_0, ||.||_2, where it is composed

    @property
    def lipschitz(self) -> float:
        """An upper bound of the cell's Lipschitz constant."""
        constants = [FUNCTIONS[name][2] for name in self.activations]
        return float(np.prod(self.norms)) * float(np.prod(constants))


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


AnyCell = Cell | LayeredCell | MonotoneConv
AnyLinearization = Linearization | LayeredLinearization | MonotoneConvLinearization


def acting_cell(model: ModelSpec, params: Params) -> AnyCell:
    """Return the cell's layers as they act: scaled if contractive, composed if monotone."""
    if model.stability == "monotone" and model.cell is not None:
        return monotone_conv(model, params, rounding(model))
    if model.stability == "monotone":
        return _monotone_cell(model, params)
    if model.has_layers:
        return layered_cell(model, params, rounding(model))
    n_layers = len(model.hidden_layer_sizes) + 1
    weights = [np.asarray(params[f"cell.{i}.weight"], np.float64) for i in range(n_layers)]
    biases = [np.asarray(params[f"cell.{i}.bias"], np.float64) for i in range(n_layers)]
    values = [singular_values(weight) for weight in weights]
    scale = 1.0
    if model.stability == "contractive" and all(s[0] > 0 for s in values):
        log_product = sum(map(log_schatten_norm, values))
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
    norm = (1 + unit) * float(singular_values(weight)[0])
    return Cell([weight], [bias], [model.activation], [norm], unit * float(size))


def _injected(model: ModelSpec, params: Params, cell: Cell, x: np.ndarray):
    """Return what h adds to ``z @ W_0`` ``(n, n_out)``, and a bound of its rounding error ``(n,)``.

    The cell is an MLP of z + h, so that this is ``h @ W_0 + b_0``; but ``h + b_0`` in the monotone
    cell.
    """
    h, error = _encoded(model, params, x)
    if model.stability == "monotone":
        return h + cell.biases[0], error + rounding(model) * np.linalg.norm(h, axis=1)
    error = cell.norms[0] * error + rounding(model) * _size(h, cell.weights[0], cell.biases[0])
    return h @ cell.weights[0] + cell.biases[0], error


def _encoded(model: ModelSpec, params: Params, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return h ``(n, n_state)``, and a bound of its rounding error ``(n,)``."""
    network = model.network
    acting = {n: np.asarray(v, np.float64) for n, v in params.items() if n.startswith("encoder.")}
    image = np.asarray(x, np.float64).reshape(-1, *network.input_shape)
    h, error = with_error(network.encoder, acting, image, np.zeros(len(x)), rounding(model))
    return h.reshape(len(x), -1), error


def linearize(
    model: ModelSpec,
    params: Params,
    cell: AnyCell,
    x: np.ndarray,
    state: np.ndarray,
) -> AnyLinearization:
    """Return the cell and its derivative at the states ``(n, n_state)``."""
    unit = rounding(model)
    if isinstance(cell, LayeredCell):
        with np.errstate(over="ignore", invalid="ignore"):  # of states that are not finite
            return linearize_layers(cell, *_encoded(model, params, x), state, unit)
    if isinstance(cell, MonotoneConv):
        with np.errstate(over="ignore", invalid="ignore"):
            return linearize_monotone_conv(cell, *_encoded(model, params, x), state, unit)
    a, slopes = np.asarray(state, np.float64), []
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
    network = model.network
    inside = [math.prod(placed.takes) for placed in walk(network.encoder + network.cell)]
    widest = max(model.n_features, *model.cell_widths, *inside)
    return 4 * widest * float(np.finfo(np.float64).eps)


def _size(a: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return a bound of ``|| |a| |weight| + |bias| ||_2``, which rounding is relative to, (n,)."""
    return np.linalg.norm(a, axis=1) * np.linalg.norm(weight) + np.linalg.norm(bias, axis=-1)
