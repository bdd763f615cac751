"""Cells and samples of the tests of certificates, and their abscissae by differences."""

import numpy as np
import oracle_math as om
from helpers import random_params

from pydeq.model import ModelSpec, certificate

# The eigenvalues of these Jacobians move little more than their entries: by the differences' error
# of 1e-9, or by ARPACK's tolerance of 1e-6.
ABSCISSA_TOLERANCE = 5e-6
WIDE = certificate.DENSE + 16


def spec(n_state=6, hidden=(8,), n_features=3, **changes):
    n_outputs = n_features if n_state is None else 2
    return ModelSpec(n_features, n_outputs, n_state, hidden, **changes)


def problem(model, dtype="float64", n=7, scale=0.6):
    """Return weights, samples, and in float64 the oracle's layers, h and equilibria."""
    params = random_params(model, dtype=dtype, scale=scale)
    x = np.random.default_rng(1).normal(size=(n, model.n_features)).astype(dtype)
    exact = {name: value.astype("float64") for name, value in params.items()}
    layers = om.cell_layers(model, exact)
    h = x.astype("float64")
    if model.n_state is not None:
        h = h @ exact["encoder.weight"] + exact["encoder.bias"]
    return params, x, layers, h, om.steady_state(model, layers, h)[0]


def abscissa_by_differences(model, layers, h, z, step=1e-6):
    """Return the largest real part of the eigenvalues of df/dz - I, by central differences."""
    largest = []
    for u, g in zip(z, h, strict=True):
        points = u + step * np.concatenate([np.eye(len(u)), -np.eye(len(u))])
        ahead, behind = np.split(om.cell(model, layers, points, g), 2)
        jacobian = (ahead - behind).T / (2 * step)
        largest.append(np.linalg.eigvals(jacobian - np.eye(len(u))).real.max())
    return np.array(largest)


def lipschitz(model, layers):
    """Return a bound of the cell's Lipschitz constant without what the activation adds."""
    return np.prod([np.linalg.norm(weight, 2) for weight, _ in layers])


def affine(matrix, **changes):
    """Return the model f(u, x) = matrix @ (u + x) and its weights."""
    width = len(matrix)
    params = {"cell.0.weight": np.array(matrix).T, "cell.0.bias": np.zeros(width)}
    return spec(None, (), width, **changes), params
