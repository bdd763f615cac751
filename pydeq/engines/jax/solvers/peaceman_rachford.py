"""Peaceman-Rachford splitting, for the monotone cell."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pydeq.engines.jax.cell import activation, affine
from pydeq.engines.jax.krylov import solve_linear
from pydeq.engines.jax.solvers.base import Controls, Field, Solver, Step
from pydeq.model import Placed, effective

__all__ = ["peaceman_rachford"]

Resolvent = Callable[[jax.Array], jax.Array]
"""``(n, n_state)`` rows y to (2 I - W)^-1 y."""

INNER = 1e-3
"""What is asked of a step's inner linear solve, relative to the step."""


def peaceman_rachford(field: Field, controls: Controls) -> Solver:
    """Winston and Kolter 2020, algorithm 2, with step 1: there act itself is the resolvent needed.

    With s = h + b, an iteration from w, of which act(w) is known, is v = 2 act(w) - w,
    z = (2 I - W)^-1 (v + s) and w <- 2 z - v. By the second, W z + s = 2 z - v, the next w: so
    act(w) is the cell at the state z, and each iteration takes one product with a matrix.

    A convolution on a torus is one matrix a frequency. For one that is padded with zeros, z is
    solved for by `solve_linear`, to which 2 I - W is definite, and the cell is evaluated at it.
    """
    start = partial(_init, field)
    if field.model.cell is None:
        return Solver(start, partial(_step, field, _dense(field)))
    conv: Any = field.model.network.cell[0]
    if conv.layer.padding == "circular":
        return Solver(start, partial(_step, field, _on_torus(effective(conv), field)))
    return Solver(lambda u, fu, h: (), partial(_inexact_step, field))


def _dense(field: Field) -> Resolvent:
    weight = field.weights["cell.0.weight"]
    inverse = jnp.linalg.inv(2 * jnp.eye(len(weight), dtype=weight.dtype) - weight)
    return lambda y: y @ inverse


def _on_torus(conv: Placed, field: Field) -> Resolvent:
    """Return the resolvent by inverting a matrix ``(c, c)`` at each frequency."""
    kernel = field.weights["cell.0.weight"]
    channels, height, width = conv.given
    k = (kernel.shape[2] - 1) // 2
    rows, columns = ((np.arange(2 * k + 1) - k) % size for size in (height, width))
    torus = jnp.zeros((*kernel.shape[:2], height, width), kernel.dtype)
    torus = torus.at[:, :, rows[:, None], columns].add(kernel)  # a wide one goes round
    spectrum = jnp.fft.rfft2(torus).conj()  # of a cross-correlation
    matrices = 2 * jnp.eye(channels, dtype=kernel.dtype) - spectrum.transpose(2, 3, 0, 1)
    inverse = jnp.linalg.inv(matrices)

    def solve(y: jax.Array) -> jax.Array:
        waves = jnp.fft.rfft2(y.reshape(-1, height, width, channels), axes=(1, 2))
        waves = jnp.einsum("xyoi,nxyi->nxyo", inverse, waves)
        return jnp.fft.irfft2(waves, (height, width), axes=(1, 2)).reshape(y.shape)

    return solve


def _bias(field: Field, n_state: int) -> jax.Array:
    bias = field.weights["cell.0.bias"]
    return jnp.tile(bias, n_state // len(bias))  # of a pixel, its channels come together


def _init(field: Field, u: jax.Array, fu: jax.Array, h: jax.Array) -> jax.Array:
    return affine(field.model, field.weights, u) + h


def _step(
    field: Field,
    resolvent: Resolvent,
    u: jax.Array,
    fu: jax.Array,
    h: jax.Array,
    memory: jax.Array,
    active: jax.Array,
) -> Step:
    v = 2 * fu - memory
    z = resolvent(v + h + _bias(field, h.shape[1]))
    memory = 2 * z - v
    return Step(z, activation(field.model)(memory), memory, 1)


def _inexact_step(
    field: Field, u: jax.Array, fu: jax.Array, h: jax.Array, memory: tuple, active: jax.Array
) -> Step:
    """Take the step written without w: z <- z + (2 I - W)^-1 2 (f(z) - z)."""
    linear = {**field.weights, "cell.0.bias": jnp.zeros_like(field.weights["cell.0.bias"])}
    change, n_products = solve_linear(
        lambda y: 2 * y - affine(field.model, linear, y), 2 * (fu - u), INNER, active
    )
    z = u + change
    return Step(z, field(z, h), memory, n_products + 1)
