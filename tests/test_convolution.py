"""Convolutions of images of one channel, and gradients of kernels, against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_near

from pydeq.engines.jax.convolution import correlate, correlate_one


def plain(a, kernel, pads):
    return jax.lax.conv_general_dilated(
        a, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize(
    ("function", "channels", "size", "pads"),
    [
        (correlate_one, 1, 3, ((1, 1), (1, 1))),
        (correlate_one, 1, 2, ((0, 0), (0, 0))),
        (correlate, 2, 3, ((1, 1), (1, 1))),
        (correlate, 2, 2, ((0, 1), (0, 1))),
    ],
)
def test_values_and_gradients_are_xlas(function, channels, size, pads):
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.normal(size=(2, 4, 6, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, channels, 3)), jnp.float32)
    expected, pull = jax.vjp(lambda *given: plain(*given, pads), a, kernel)
    found, own_pull = jax.vjp(lambda *given: function(*given, pads), a, kernel)
    assert_near(found, expected, 1e-6)
    cotangent = jnp.asarray(rng.normal(size=expected.shape), jnp.float32)
    for own, theirs in zip(own_pull(cotangent), pull(cotangent), strict=True):
        assert_near(own, theirs, 1e-6)
