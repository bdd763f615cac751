"""Bounds of what layers stretch, against the singular values of the maps as dense matrices."""

import numpy as np
import pytest

from pydeq.layers import Conv, Dense, MaxPool, MeanPool, Residual
from pydeq.model.bounds import lipschitz, log_scaling_bounds
from pydeq.model.forward import forward
from pydeq.model.network import place, placed_parameters

CONVS = [
    Conv(channels, size, stride, padding)
    for channels in (2, 5)
    for size in (1, 2, 3)
    for stride in (1, 2)
    for padding in ("zero", "circular")
]


def placed(layer, shape=(3, 6, 5), seed=0):
    """Return a layer in its place, random weights, and its linear part as a matrix."""
    part, _ = place("cell", (layer,), shape)
    rng = np.random.default_rng(seed)
    params = {name: rng.normal(size=s) for name, s in placed_parameters(part).items()}
    basis = np.eye(np.prod(shape)).reshape(-1, *shape)
    offset = forward(part, params, np.zeros((1, *shape)))
    return part, params, (forward(part, params, basis) - offset).reshape(len(basis), -1)


@pytest.mark.parametrize("layer", [*CONVS, Residual(Conv(3)), MeanPool(2)], ids=repr)
def test_bound_is_above_the_dense_singular_values(layer):
    part, params, matrix = placed(layer)
    exact, bound = np.linalg.norm(matrix, 2), lipschitz(part, params)
    assert exact <= bound * (1 + 1e-12)
    is_exact = isinstance(layer, MeanPool) or (
        isinstance(layer, Conv)
        and layer.stride == 1
        and (layer.padding == "circular" or layer.kernel_size == 1)
    )
    assert bound <= exact * (1 + 1e-12 if is_exact else 2.2)
    for log in log_scaling_bounds(part, params):  # of Gram iteration
        assert bound <= np.exp(log) * (1 + 1e-12)
        assert np.exp(log) <= 1.02 * bound


def test_a_dense_layer_and_a_pool():
    part, params, matrix = placed(Dense(4), (7,))
    assert lipschitz(part, params) == pytest.approx(np.linalg.norm(matrix, 2))
    part, params, _ = placed(MaxPool(2))
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 200, 3, 6, 5))
    gap = np.linalg.norm((forward(part, {}, a) - forward(part, {}, b)).reshape(200, -1), axis=1)
    assert (gap <= lipschitz(part, {}) * np.linalg.norm((a - b).reshape(200, -1), axis=1)).all()
