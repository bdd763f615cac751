"""Layers as they act in a model, in numpy float64, with bounds of their rounding.

The cell of layers that the user gave; its twin for the cells that pydeq names is
:mod:`pydeq.model.cell`.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pydeq import layers
from pydeq.model.bounds import lipschitz, log_scaling_bounds
from pydeq.model.forward import Tape, assemble, forward, push, record, shares
from pydeq.model.network import Part, Placed
from pydeq.model.params import Params
from pydeq.model.spec import ModelSpec
from pydeq.shapes import n_values

__all__ = ["LayeredCell", "LayeredLinearization", "layered_cell", "linearize_layers", "with_error"]


class LayeredCell(NamedTuple):
    """A cell of layers in float64, as they act."""

    part: Part
    params: Params
    lipschitz: float  # an upper bound; inf: there is none


class LayeredLinearization(NamedTuple):
    """The cell at the points (z, h) of n samples, and its derivative there."""

    cell: LayeredCell
    tape: Tape
    value: np.ndarray  # f(z, h) (n, n_state)
    error: np.ndarray  # bound of the value's rounding error, ||.||_2 (n,); inf: none is known
    lipschitz: float

    def at(self, rows: np.ndarray) -> "LayeredLinearization":
        """Return those samples."""
        tape = tuple(layer.at(rows) for layer in self.tape)
        return self._replace(tape=tape, value=self.value[rows], error=self.error[rows])

    def jvp(self, tangent: np.ndarray) -> np.ndarray:
        """Return df/dz t of the tangents t ``(n, n_state)``, or of k each, ``(n, k, n_state)``."""
        along = tangent.reshape(-1, *self.cell.part[0].takes)
        return push(self.tape, self.cell.params, along).reshape(tangent.shape)

    def jacobians(self) -> np.ndarray:
        """Return the transposed Jacobians J[k, i, j] = df_j/dz_i, ``(n, n_state, n_state)``."""
        n, width = self.value.shape
        return self.jvp(np.broadcast_to(np.eye(width), (n, width, width)))

    def rank_bound(self) -> int:
        """Return an upper bound of the rank of df/dz at one sample, the only one here."""
        return _rank_bound(self.tape, self.value.shape[1])


def _rank_bound(tape: Tape, width: int) -> int:
    """Return an upper bound of the rank of the derivative of layers at one sample."""
    ranks = [width]
    for placed, known, parts in tape:
        ranks.append(n_values(placed.gives))
        if isinstance(placed.layer, layers.Activation) and known:
            ranks.append(int(np.count_nonzero(known[0])))
        elif isinstance(placed.layer, layers.Branches):
            ranks.append(sum(_rank_bound(part, width) for part in parts))
    return min(ranks)


def layered_cell(model: ModelSpec, params: Params, unit: float) -> LayeredCell:
    """Return the cell's layers as they act; `unit` is the relative error of a product."""
    part = model.network.cell
    acting = {n: np.asarray(v, np.float64) for n, v in params.items() if n.startswith("cell.")}
    if model.stability == "contractive":
        logs = log_scaling_bounds(part, acting)
        scale = float(np.exp(min(0.0, (np.log(model.contraction) - sum(logs)) / len(logs))))
        for placed in part:
            if isinstance(placed.layer, layers.Dense | layers.Conv):
                acting[f"{placed.name}.weight"] = scale * acting[f"{placed.name}.weight"]
            elif placed.has_factor:
                acting[f"{placed.name}.factor"] = np.array(scale)
    bound = (1 + unit) ** len(acting) * lipschitz(part, acting)
    if model.stability == "contractive":
        bound = min(bound, model.contraction)
    return LayeredCell(part, acting, bound)


def linearize_layers(
    cell: LayeredCell, h: np.ndarray, error: np.ndarray, state: np.ndarray, unit: float
) -> LayeredLinearization:
    """Return the cell and its derivative at ``(n, n_state)`` states; `error` bounds that of h."""
    start = (np.asarray(state, np.float64) + h).reshape(-1, *cell.part[0].takes)
    error = error + unit * _norm(start)
    _, error = with_error(cell.part, cell.params, start, error, unit)
    value, tape = record(cell.part, cell.params, start)
    return LayeredLinearization(cell, tape, value.reshape(state.shape), error, cell.lipschitz)


def with_error(
    part: Part, params: Mapping[str, np.ndarray], a: np.ndarray, error: np.ndarray, unit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return what layers make of `a`, and a bound of its error ``(n,)``, in the Euclidean norm.

    `error` is that of `a`; `unit` bounds the relative error of an inner product.
    """
    for placed in part:
        if placed.has_factor:
            a, error = _of_parts_with_error(placed, params, a, error, unit)
        elif isinstance(placed.layer, layers.GroupNorm):
            # Its derivative is at most this, where the spread of its input is 0.
            steep = np.abs(params[f"{placed.name}.scale"]).max() / np.sqrt(placed.layer.epsilon)
            error = steep * (error + unit * _norm(a))
            a = forward((placed,), params, a)
            error = error + unit * _norm(a)
        elif isinstance(placed.layer, layers.Dense | layers.Conv):
            size, bias = _sizes(placed, params)
            error = lipschitz((placed,), params) * error + unit * (size * _norm(a) + bias)
            a = forward((placed,), params, a)
        else:
            a = forward((placed,), params, a)
            error = error + unit * _norm(a)
    return a, error


def _of_parts_with_error(
    placed: Placed, params: Mapping[str, np.ndarray], a: np.ndarray, error: np.ndarray, unit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return `with_error` of a layer that is made of layers."""
    each = zip(placed.parts, shares(placed, a), strict=True)
    pairs = [with_error(part, params, own, error, unit) for part, own in each]
    made, errors = [m for m, _ in pairs], [e for _, e in pairs]
    layer, given = placed.layer, _norm(a)
    a = assemble(placed, params, a, made)
    if isinstance(layer, layers.Branches):
        total = np.sqrt(sum(e**2 for e in errors))
    else:
        # A pixel that is repeated counts as often. A sum's terms may cancel.
        is_fuse = isinstance(layer, layers.Fuse)
        steps = [path.step for path in layer.paths(placed.given)] if is_fuse else [1]
        sizes = [e + unit * _norm(m) for e, m in zip(errors, made, strict=True)]
        total = error + unit * given + sum(s * e for s, e in zip(steps, sizes, strict=True))
    return a, params.get(f"{placed.name}.factor", 1.0) * total + unit * _norm(a)


def _sizes(placed: Placed, params: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Return bounds of the norm of ``|weight|`` and of the bias as it is added."""
    weight, bias = params[f"{placed.name}.weight"], params[f"{placed.name}.bias"]
    if weight.ndim == 2:
        return float(np.linalg.norm(weight)), float(np.linalg.norm(bias))
    rows, columns = (np.abs(weight).sum(axis=axes).max() for axes in ((1, 2, 3), (0, 2, 3)))
    pixels = math.prod(placed.gives[1:])
    return float(np.sqrt(rows * columns)), float(np.linalg.norm(bias) * np.sqrt(pixels))


def _norm(a: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a.reshape(len(a), -1), axis=1)
