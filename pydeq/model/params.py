"""Names, shapes and starting values of a model's weights.

A weight is kept as ``(n_in, n_out)`` in C order: a layer is ``x @ weight + bias`` here, and the
same bytes read in Julia's column order are Lux's ``(n_out, n_in)``. So are those of a kernel
``(out, in, height, width)`` Lux's ``(width, height, in, out)``.
"""

import math

import numpy as np

from pydeq.cell_function import CellFunction
from pydeq.model.network import placed_parameters
from pydeq.model.spec import ModelSpec

__all__ = ["Params", "check_params", "flatten", "init_params", "parameter_shapes"]

Params = dict[str, np.ndarray]


def parameter_shapes(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by name, in the order that `flatten` uses.

    The names are ``encoder.weight``, ``encoder.bias``, ``cell.0.weight``, ..., ``decoder.bias``;
    :func:`pydeq.model.network.place` says how they are made. Encoder and decoder are absent where
    ``model.n_state`` is None. The monotone cell has a square ``cell.0.skew`` beside its weight. The
    weights of a first guess come last, so that those of all else start as they do without one.
    """
    network = model.network
    cell = placed_parameters(network.cell)
    if isinstance(model.cell, CellFunction):
        cell = {f"cell.{name}": shape for name, shape in model.cell.shapes.items()}
    encoder, decoder, init = map(
        placed_parameters, (network.encoder, network.decoder, network.init)
    )
    shapes: dict[str, tuple[int, ...]] = {}
    for part in (encoder, cell, decoder, init):
        for name, shape in part.items():
            shapes[name] = shape
            if model.stability == "monotone" and name == "cell.0.weight":
                shapes["cell.0.skew"] = shape
    return shapes


def init_params(model: ModelSpec, rng: np.random.Generator, dtype: np.dtype) -> Params:
    """Draw Glorot-uniform weights, biases of 0 and scales of 1 (Glorot and Bengio 2010, eq. 16).

    The parameters of a cell that is a function start as it says.

    Parameters
    ----------
    model : ModelSpec
    rng : numpy.random.Generator
        The only source of randomness; draws are float64 whatever the dtype, so that a model has
        the same start in float32 and float64.
    dtype : numpy.dtype
        float32 or float64.

    Returns
    -------
    dict of str to ndarray
    """
    own = model.cell.params if isinstance(model.cell, CellFunction) else {}
    params: Params = {}
    for name, shape in parameter_shapes(model).items():
        if (start := own.get(name.removeprefix("cell."))) is not None:
            params[name] = np.array(start, dtype)
        elif name.endswith(".bias"):
            params[name] = np.zeros(shape, dtype)
        elif name.endswith(".scale"):
            params[name] = np.ones(shape, dtype)
        else:
            # Of a kernel (out, in, height, width): what meets in a value, and what it goes to.
            limit = np.sqrt(6.0 / (sum(shape[:2]) * math.prod(shape[2:])))
            params[name] = rng.uniform(-limit, limit, shape).astype(dtype)
    return params


def check_params(model: ModelSpec, params: Params) -> None:
    """Raise ValueError unless `params` has exactly the names and shapes of `model`."""
    expected = parameter_shapes(model)
    found = {name: tuple(value.shape) for name, value in params.items()}
    if found != expected:
        wrong = sorted(
            f"{name}: expected {expected.get(name, 'no such parameter')}, "
            f"found {found.get(name, 'nothing')}"
            for name in expected.keys() | found.keys()
            if expected.get(name) != found.get(name)
        )
        raise ValueError("The weights do not fit the model: " + "; ".join(wrong))


def flatten(model: ModelSpec, params: Params) -> np.ndarray:
    """Return all parameters as one vector, in the order of `parameter_shapes`."""
    return np.concatenate([params[name].ravel() for name in parameter_shapes(model)])
