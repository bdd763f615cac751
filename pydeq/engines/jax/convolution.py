"""Convolutions and what they see, in the form that XLA is quick at on a CPU."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["Pads", "correlate", "patches"]

Pads = tuple[tuple[int, int], tuple[int, int]]
"""Zeros before and after the rows, and before and after the columns."""


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def correlate(a: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """Return the cross-correlation ``(n, height, width, out)`` of images, without a stride.

    Of an image's layouts, XLA has a quick convolution for this one alone, and none for what it
    makes of one when it differentiates: in a loop that took 30 times as long. So the derivatives
    are written out, as a convolution of the same form and a product.

    Parameters
    ----------
    a : jax.Array (n, height, width, in)
    kernel : jax.Array (k, k, in, out)
    pads : Pads
        At most k - 1 each.
    """
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(a, kernel, (1, 1), pads, dimension_numbers=dimensions)


def _forward(
    a: jax.Array, kernel: jax.Array, pads: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return correlate(a, kernel, pads), (a, kernel)


def _pull_back(
    pads: Pads, saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a, kernel = saved
    k = len(kernel)
    above, beside = (tuple(k - 1 - n for n in pad) for pad in pads)
    to_a: Any = correlate(g, kernel[::-1, ::-1].swapaxes(2, 3), (above, beside))
    seen = patches(jnp.pad(a, ((0, 0), *pads, (0, 0))), k, 1, g.shape[1:3])
    return to_a, (seen.T @ g.reshape(-1, g.shape[3])).reshape(kernel.shape)


correlate.defvjp(_forward, _pull_back)


def patches(a: jax.Array, k: int, step: int, size: tuple[int, ...]) -> jax.Array:
    """Return what a kernel of k x k sees of padded images, each pixel's a row.

    Parameters
    ----------
    a : jax.Array (n, height, width, in)
        Images with their padding.
    k, step : int
        Size of the kernel, and its stride.
    size : tuple of int
        Height and width of what the kernel makes.

    Returns
    -------
    jax.Array (n * size[0] * size[1], k * k * in)
    """
    rows, columns = ((n - 1) * step + 1 for n in size)
    seen = [a[:, i : i + rows : step, j : j + columns : step] for i in range(k) for j in range(k)]
    return jnp.concatenate(seen, axis=3).reshape(-1, k * k * a.shape[3])
