"""Builders and comparisons that the tests share; the tolerances of every comparison by value."""

import dataclasses

import numpy as np

from pydeq.model import ModelSpec, OptimizerSpec, SolverSpec, init_params

# Largest difference, relative to the size of what is compared, from the float64 oracle.
STATE_TOLERANCE = {"float64": 1e-8, "float32": 2e-5}
GRADIENT_TOLERANCE = {"float64": 1e-6, "float32": 2e-3}
# Weights after several optimiser steps; Adam divides by the gradient's size, so that errors of
# small gradients count in full.
TRAINED_TOLERANCE = {"float64": 1e-6, "float32": 2e-3}
# A gradient against finite differences of a loss whose states are solved to 1e-11.
DIFFERENCE_TOLERANCE = 1e-6

# Solves that end only where rounding does: what remains is the engine's own error.
TIGHT = {
    "float64": SolverSpec(abstol=1e-11, reltol=1e-11, max_steps=20_000),
    "float32": SolverSpec(abstol=2e-6, reltol=2e-6, max_steps=2_000),
}


def tight(dtype="float64", **changes) -> SolverSpec:
    """Return a tight solver for the dtype, with changes."""
    return dataclasses.replace(TIGHT[dtype], **changes)


def random_params(model: ModelSpec, seed=0, dtype="float64", scale=0.6):
    """Return Glorot weights times `scale` and small biases.

    At 0.6 the typical cell has a spectral radius near 0.4: one equilibrium, which every solver
    finds. Biases that are not zero make their gradients and their being unscaled count.
    """
    rng = np.random.default_rng(seed)
    params = init_params(model, rng, np.dtype("float64"))
    for name, value in params.items():
        if name.endswith(".bias"):
            params[name] = rng.normal(0, 0.1, value.shape)
        elif name.startswith("cell."):
            params[name] = scale * value
    return {name: value.astype(dtype) for name, value in params.items()}


def random_batch(model: ModelSpec, optimizer: OptimizerSpec, n=8, seed=1, dtype="float64"):
    """Return x, target and weight: unequal weights, classes for ``log_loss``."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, model.n_features))
    if optimizer.loss == "log_loss":
        target = rng.integers(model.n_outputs, size=n).astype(np.int32)
    else:
        target = rng.normal(size=(n, model.n_outputs)).astype(dtype)
    weight = rng.uniform(0.5, 2.0, n)
    return x.astype(dtype), target, weight.astype(dtype)


def assert_near(found, expected, tolerance, what=""):
    """Assert that the largest error is at most `tolerance` times the largest expected value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, f"{what}: shape {found.shape}, not {expected.shape}"
    assert np.isfinite(found).all(), f"{what}: not finite"
    error = np.abs(found - expected).max(initial=0.0)
    bound = tolerance * np.abs(expected).max(initial=0.0)
    assert error <= bound, f"{what}: off by {error:.2e}, allowed {bound:.2e}"


def assert_params_near(found, expected, tolerance):
    """Assert that named arrays are near, each relative to its own size.

    An array a thousand times smaller than the largest is measured against a thousandth of that:
    in it rounding is all there is.
    """
    assert found.keys() == expected.keys()
    largest = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        size = max(np.abs(value).max(), 1e-3 * largest)
        assert found[name].shape == value.shape, name
        assert np.isfinite(found[name]).all(), f"{name}: not finite"
        error = np.abs(np.float64(found[name]) - np.float64(value)).max()
        assert error <= tolerance * size, (
            f"{name}: off by {error:.2e}, allowed {tolerance * size:.2e}"
        )


def assert_params_equal(found, expected):
    """Assert that named arrays are the same bit for bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def norm(params) -> float:
    """Return the L2 norm of named arrays."""
    return float(np.sqrt(sum((value**2).sum() for value in params.values())))


def random_direction(params, seed):
    """Return named arrays that together have L2 norm 1."""
    rng = np.random.default_rng(seed)
    direction = {name: rng.normal(size=value.shape) for name, value in params.items()}
    return {name: value / norm(direction) for name, value in direction.items()}


def entry_direction(params, name, index):
    """Return named arrays of zeros with a single 1."""
    direction = {other: np.zeros_like(value) for other, value in params.items()}
    direction[name][index] = 1.0
    return direction


def inner(left, right) -> float:
    """Return the inner product of named arrays."""
    return float(sum((left[name] * right[name]).sum() for name in right))


def difference_quotient(function, params, direction, step=1e-3) -> float:
    """Return the derivative of ``function(params)`` along `direction`.

    The central difference of fourth order: its own error is about step ** 4, while an error e of
    the function counts as e / step.
    """

    def at(distance):
        return function({n: value + distance * direction[n] for n, value in params.items()})

    near, far = at(step) - at(-step), at(2 * step) - at(-2 * step)
    return (8 * near - far) / (12 * step)
