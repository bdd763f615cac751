"""Convolutions and what they see, in the form that XLA is quick at on a CPU."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["Pads", "correlate", "correlate_one", "patches"]

Pads = tuple[tuple[int, int], tuple[int, int]]
"""Zeros before and after the rows, and before and after the columns."""


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def correlate(a: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """Return the cross-correlation ``(n, height, width, out)`` of images, without a stride.

    Of an image's layouts, XLA has a quick convolution for this one alone, and none for what it
    makes of one when it differentiates: in a loop that took 30 times as long. So the derivatives
    are written out, as convolutions of the same form.

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
    others: Any = tuple(tuple(k - 1 - n for n in pad) for pad in pads)
    to_a: Any = correlate(g, kernel[::-1, ::-1].swapaxes(2, 3), others)
    if g.shape[3] <= a.shape[3]:
        return to_a, _to_kernel(a, g, pads)
    return to_a, _to_kernel(g, a, others)[::-1, ::-1].swapaxes(2, 3)


def _to_kernel(a: jax.Array, g: jax.Array, pads: Pads) -> jax.Array:
    """Return what `correlate` pulls back to its kernel: the images are channels, and seen by g.

    It is quicker if `a` has more channels than `g`: on a CPU, two thirds of the time that it takes
    the other way round.
    """
    seen: Any = correlate(a.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), pads)
    return seen.transpose(1, 2, 0, 3)


correlate.defvjp(_forward, _pull_back)


BLOCK = 4
"""Neighbours in a row that `correlate_one` makes at once."""


def correlate_one(a: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """Return what `correlate` returns, of images of one channel ``(n, height, width, 1)``.

    A product for each pixel is too small to be quick. So it is one for `BLOCK` neighbours, of all
    that they see, with a kernel that has its own zeros: on a CPU a third of the time.
    """
    k, channels = len(kernel), kernel.shape[3]
    n, height, width = (a.shape[0], *(a.shape[i] + sum(pads[i - 1]) - k + 1 for i in (1, 2)))
    n_blocks, sees = -(-width // BLOCK), BLOCK + k - 1
    (left, right), more = pads[1], n_blocks * BLOCK - width
    a = jnp.pad(a[..., 0], ((0, 0), pads[0], (left, right + more)))
    blocks = jnp.stack([a[:, :, i * BLOCK : i * BLOCK + sees] for i in range(n_blocks)], axis=2)
    seen = jnp.concatenate([blocks[:, i : i + height] for i in range(k)], axis=3)
    shifted = [jnp.pad(kernel[:, :, 0], ((0, 0), (i, BLOCK - 1 - i), (0, 0))) for i in range(BLOCK)]
    wide = jnp.stack(shifted, axis=2).reshape(k * sees, BLOCK * channels)
    made = seen.reshape(-1, k * sees) @ wide
    return made.reshape(n, height, n_blocks * BLOCK, channels)[:, :, :width]


def patches(a: jax.Array, kernel: tuple[int, int], step: int, size: tuple[int, ...]) -> jax.Array:
    """Return what a kernel sees of padded images, each pixel's a row.

    Parameters
    ----------
    a : jax.Array (n, height, width, in)
        Images with their padding.
    kernel : tuple of int
        Its height and width.
    step : int
        Its stride.
    size : tuple of int
        Height and width of what the kernel makes.

    Returns
    -------
    jax.Array (n * size[0] * size[1], kernel[0] * kernel[1] * in)
    """
    (high, wide), (rows, columns) = kernel, ((n - 1) * step + 1 for n in size)
    seen = [
        a[:, i : i + rows : step, j : j + columns : step] for i in range(high) for j in range(wide)
    ]
    return jnp.concatenate(seen, axis=3).reshape(-1, high * wide * a.shape[3])
