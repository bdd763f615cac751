"""The bound of the distance to a monotone cell's equilibrium, on cells of any monotonicity."""

import numpy as np
import oracle_math as om
import pytest

from pydeq.model import ACTIVATIONS
from pydeq.model.certificate import (
    monotone_distance_bound,
)


def monotone_problem(activation, monotonicity, n=30, width=12, size=1.0, skew=1.0):
    rng = np.random.default_rng(0)
    a, b = size * rng.normal(size=(width, width)), skew * rng.normal(size=(width, width))
    weight = (1 - monotonicity) * np.eye(width) - a @ a.T + b - b.T
    h = rng.normal(size=(n, width))
    act = om.ACTIVATION[activation][0]
    # Damped Newton steps.
    z = np.zeros_like(h)
    slope = om.ACTIVATION[activation][1]
    for _ in range(2000):
        before = z @ weight + h
        gap = act(before) - z
        if np.abs(gap).max() < 1e-14:
            break
        jacobian = slope(before)[:, :, None] * weight.T
        move = np.linalg.solve(np.eye(width) - jacobian, gap[:, :, None])[:, :, 0]
        here = np.linalg.norm(gap, axis=1)
        length = np.ones(n)
        for _ in range(30):
            new = z + length[:, None] * move
            worse = np.linalg.norm(act(new @ weight + h) - new, axis=1) > here
            if not worse.any():
                break
            length[worse] /= 2
        z = z + length[:, None] * move
    assert np.abs(act(z @ weight + h) - z).max() < 1e-13
    return weight, h, act, z


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("monotonicity", [0.05, 1.0])
@pytest.mark.parametrize("size", [0.1, 0.5])
def test_the_monotone_bound_holds(activation, monotonicity, size):
    weight, h, act, exact = monotone_problem(activation, monotonicity, size=size)
    assert np.linalg.norm(weight, 2) > 1  # no contraction
    rng = np.random.default_rng(1)
    for loose in (1e-6, 1e-2, 1.0, 100.0):
        z = exact + loose * rng.normal(size=exact.shape)
        fz = act(z @ weight + h)
        bound = monotone_distance_bound(weight, z, fz, monotonicity)
        distance = np.linalg.norm(z - exact, axis=1)
        assert (bound >= distance).all()
        # Both terms are at most a multiple of ||f(z) - z|| <= (1 + ||W||) ||z - z*||.
        norm = np.linalg.norm(weight, 2)
        assert (bound <= (1 + norm / monotonicity) * (1 + norm) * distance).all()


def test_the_monotone_bound_is_sharp_and_counts_errors():
    # f(z) = act(0.5 z) with the identity: m = 0.5, ||z - z*|| = |z| = r + 0.5 * 0.5 |z| / 0.5.
    weight, z = 0.5 * np.eye(1), np.array([[4.0]])
    np.testing.assert_allclose(monotone_distance_bound(weight, z, 0.5 * z, 0.5), 4.0)
    np.testing.assert_allclose(monotone_distance_bound(weight, z, 0.5 * z, 0.5, 0.1), 4.2)
