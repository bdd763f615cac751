"""Upper bounds of what a contractive cell's layers can stretch, by Gram iteration, with gradients.

Delattre et al. 2023: ``||G^k||_F ** (1 / 2k)`` with G = W^T W and k = 2 ** SQUARINGS bounds the
spectral norm of W from above and converges to it superlinearly; it is deterministic and
differentiable, so training and prediction scale a cell alike. For a convolution W is, at each
frequency of a torus, a matrix ``(out, in)``, and the bound is the largest of theirs.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pydeq import layers
from pydeq.engines.jax.cell import Acting
from pydeq.model import Part, Placed, fused, torus
from pydeq.shapes import is_several

__all__ = ["Bound", "log_bound_and_slopes", "log_norm_bounds"]

Bound = tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array | float]]]
"""The log of a bound; of each weight, by name, its gradient times a number, and that number."""

SQUARINGS = 5
"""Of a Gram matrix, for the bound of its weight's spectral norm."""


def log_bound_and_slopes(placed: Placed, params: Acting) -> Bound:
    """Return the bound of a layer, and its gradient by the weights in it."""
    names = [name for name in params if name.startswith(f"{placed.name}.")]
    weights = {name: params[name] for name in names if name.endswith(".weight")}
    log_bound, slopes = jax.value_and_grad(lambda weights: _log_bound(placed, weights))(weights)
    return log_bound, {name: (slope, 1.0) for name, slope in slopes.items()}


def _log_bound(placed: Placed, weights: Acting) -> jax.Array:
    if placed.has_factor:
        return _log_bound_of_parts(placed, [_log_product(part, weights) for part in placed.parts])
    weight = weights[f"{placed.name}.weight"]
    # Sizes are divided out before anything is multiplied; the bound is proportional to them.
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(weight)))
    size = jnp.where(size > 0, size, 1)
    unit = weight / size
    if weight.ndim == 2:
        return _log_gram_norms(unit[None], jnp.zeros_like(unit)[None])[0] + jnp.log(size)
    # The largest alone has a gradient: that of all the others would be computed, and be 0.
    waves = _waves(placed, weight.dtype)
    of_all = _log_gram_norms(*_spectrum(jax.lax.stop_gradient(unit), waves))
    largest = jnp.argmax(of_all)[None]
    return _log_gram_norms(*_spectrum(unit, waves[:, largest]))[0] + jnp.log(size)


def _log_product(part: Part, weights: Acting) -> jax.Array:
    linear = layers.Dense | layers.Conv
    inside = [placed for placed in part if placed.has_factor or isinstance(placed.layer, linear)]
    return sum((_log_bound(placed, weights) for placed in inside), jnp.zeros(()))


def _log_bound_of_parts(placed: Placed, inside: list[jax.Array]) -> jax.Array:
    """Return the bound of a layer of layers from those of its parts; see `ModelSpec`."""
    layer = placed.layer
    if isinstance(layer, layers.Residual):
        return jnp.logaddexp(0.0, inside[0])
    logs = jnp.stack(inside)
    if isinstance(layer, layers.Branches):
        several = is_several(placed.given)
        return jnp.max(logs) if several else jax.nn.logsumexp(2 * logs) / 2
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(logs), 0))
    matrix = fused(placed, jnp.exp(logs - top), jnp.exp(-top))
    return _log_gram_norms(matrix[None], jnp.zeros_like(matrix)[None])[0] + top


def _waves(placed: Placed, dtype: np.dtype) -> jax.Array:
    """Return cos and -sin of a torus's frequencies at a kernel's elements ``(2, f, k * k)``.

    They are half of the frequencies: the spectrum at the others is conjugate to that at these.
    """
    height, width = torus(placed)
    layer: Any = placed.layer
    size = layer.kernel_size
    rows = np.arange(height)[:, None, None, None] * np.arange(size)[:, None] / height
    columns = np.arange(width // 2 + 1)[:, None, None] * np.arange(size) / width
    angles = 2 * np.pi * (rows + columns).reshape(-1, size * size)
    return jnp.asarray(np.stack([np.cos(angles), -np.sin(angles)]), dtype)


def _spectrum(weight: jax.Array, waves: jax.Array) -> jax.Array:
    """Return real and imaginary parts of a kernel at each frequency ``(2, f, out, in)``.

    A kernel has few elements, so that sums over them are quicker than a Fourier transform.
    """
    kernel = weight.reshape(*weight.shape[:2], -1)
    return jnp.einsum("oik,pfk->pfoi", kernel, waves)


def _log_gram_norms(real: jax.Array, imaginary: jax.Array) -> jax.Array:
    """Return the log of the bound of each matrix ``(f, out, in)``, ``(f,)``."""
    tiny = jnp.finfo(real.dtype).tiny
    if real.shape[1] < real.shape[2]:  # G = W W^T is the smaller one
        real, imaginary = real.swapaxes(1, 2), -imaginary.swapaxes(1, 2)
    # G = A + iB of the matrix R + iI; A is symmetric, B antisymmetric, and so are those of powers.
    a = real.mT @ real + imaginary.mT @ imaginary
    b = real.mT @ imaginary - imaginary.mT @ real

    def normalised(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        norm = jnp.sqrt(jnp.sum(a**2 + b**2, axis=(1, 2)) + tiny)
        return a / norm[:, None, None], b / norm[:, None, None], jnp.log(norm)

    a, b, log_norm = normalised(a, b)
    for _ in range(SQUARINGS):
        ab = a @ b
        a, b, log_factor = normalised(a @ a - b @ b, ab - ab.mT)
        log_norm = 2 * log_norm + log_factor
    return log_norm / 2 ** (SQUARINGS + 1)


def log_norm_bounds(weights: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
    """Return the log of an upper bound of each ``||weight||_2``, and its gradient.

    The gradient is d log sigma = tr(M dG) / (2 tr(M G)), M = G^(2k - 1), a product of the powers
    that are squared.
    """
    n = max(min(w.shape) for w in weights)
    grams = jnp.stack([_padded(_gram(w), n) for w in weights])  # rows of 0 change no norm
    tiny = jnp.finfo(grams.dtype).tiny

    def normalised(g: jax.Array) -> tuple[jax.Array, jax.Array]:
        norm = jnp.sqrt(jnp.sum(g**2, axis=(1, 2)) + tiny)
        return g / norm[:, None, None], jnp.log(norm)

    def square(_, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        power, product, log_norm = carry
        power, log_factor = normalised(power @ power)
        return power, product @ power, 2 * log_norm + log_factor

    power, log_norm = normalised(grams)
    _, product, log_norm = jax.lax.fori_loop(0, SQUARINGS, square, (power, power, log_norm))
    slopes = []
    for w, m in zip(weights, product, strict=True):
        k = min(w.shape)
        slope = w @ m[:k, :k] if w.shape[1] < w.shape[0] else m[:k, :k] @ w
        slopes.append(slope / (jnp.sum(slope * w) + tiny))
    return log_norm / 2 ** (SQUARINGS + 1), slopes


def _gram(weight: jax.Array) -> jax.Array:
    n_in, n_out = weight.shape
    return weight.T @ weight if n_out < n_in else weight @ weight.T


def _padded(gram: jax.Array, n: int) -> jax.Array:
    k = n - len(gram)
    return jnp.pad(gram, ((0, k), (0, k))) if k else gram
