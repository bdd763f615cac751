"""Broyden's method with a safeguard."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pydeq.engines.jax.solvers.base import Controls, Field, Solver, Step

__all__ = ["broyden"]

RANK = 12
"""Updates of the inverse Jacobian that are kept; then it begins anew."""


def broyden(field: Field, controls: Controls) -> Solver:
    """Broyden's first method on g(u) = f(u) - u, as Bai et al. 2019 (section 3.1.3) use it.

    The inverse Jacobian starts as -I, whose step is the plain u <- f(u), and gains a rank-one
    update a step (Sherman and Morrison). A step that would make ``||g||_2`` larger, or not finite,
    is not taken: the sample begins anew with a plain step, which is taken as it is.
    """
    return Solver(_init, partial(_step, field))


class _Memory(NamedTuple):
    k: jax.Array
    left: jax.Array  # (m, B, n)
    right: jax.Array  # (m, B, n): the inverse is -I + sum_i left_i right_i^T


def _init(u: jax.Array, fu: jax.Array, h: jax.Array) -> _Memory:
    zeros = jnp.zeros((RANK, *u.shape), u.dtype)
    return _Memory(jnp.zeros((), jnp.int32), zeros, zeros)


def _apply(left: jax.Array, right: jax.Array, v: jax.Array) -> jax.Array:
    """Return the inverse Jacobian times v; with left and right exchanged, its transpose."""
    return jnp.sum(left * jnp.sum(right * v, axis=2, keepdims=True), axis=0) - v


def _step(
    field: Field,
    u: jax.Array,
    fu: jax.Array,
    h: jax.Array,
    memory: _Memory,
    active: jax.Array,
) -> Step:
    g = fu - u
    du = -_apply(memory.left, memory.right, g)
    new_u = u + du
    new_fu = field(new_u, h)
    new_g = new_fu - new_u
    better = jnp.sum(new_g**2, axis=1) <= jnp.sum(g**2, axis=1)
    keep = better | jnp.all(du == g, axis=1)
    row = keep[:, None]
    memory = _update(memory, du, new_g - g, keep)
    return Step(jnp.where(row, new_u, u), jnp.where(row, new_fu, fu), memory, 1)


def _update(memory: _Memory, du: jax.Array, dg: jax.Array, keep: jax.Array) -> _Memory:
    """Add the rank-one update that maps dg to du; forget all where not `keep`."""
    slot = memory.k % RANK
    fresh = slot == 0
    left, right = (jnp.where(fresh, 0, a) for a in (memory.left, memory.right))
    direction = _apply(right, left, du)
    size = jnp.sum(direction * dg, axis=1, keepdims=True)
    gain = (du - _apply(left, right, dg)) / jnp.where(size == 0, 1, size)
    row = keep[:, None]
    useful = row & (size != 0) & jnp.all(jnp.isfinite(gain), axis=1, keepdims=True)
    left = jnp.where(row, left, 0).at[slot].set(jnp.where(useful, gain, 0))
    right = jnp.where(row, right, 0).at[slot].set(jnp.where(useful, direction, 0))
    return _Memory(memory.k + 1, left, right)
