"""Anderson acceleration with a safeguard."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pydeq.engines.jax.solvers.base import Controls, Field, Solver, Step

__all__ = ["anderson"]

WINDOW = 3
"""Differences that are kept: on trained cells more gained little, and each costs two passes."""


def anderson(field: Field, controls: Controls) -> Solver:
    """Type II of Walker and Ni 2011, section 2, over the last `WINDOW` steps.

    The changes of g = f(u) - u are made orthonormal as they come (as in the truncated GCR of He,
    Tang and Saad 2024), so that the least squares over them are products alone.

    A step that would make ``||f(u) - u||_2`` larger, or not finite, is not taken: the sample goes
    back to plain iteration, u <- f(u), and gathers its window anew. Where f contracts, each plain
    step makes the residual smaller by that factor, so the search ends whatever the window does.
    """
    return Solver(_init, partial(_step, field))


class _Memory(NamedTuple):
    """The window, the newest first; a slot whose product with g is 0 is not used."""

    df: tuple[jax.Array, ...]  # m of (B, n): changes of f(u), combined as their dg are
    dg: tuple[jax.Array, ...]  # m of (B, n): changes of g, orthonormal
    along: tuple[jax.Array, ...]  # m of (B, 1): products of the dg with g
    size: jax.Array  # (B, 1): the square of ||g||


def _init(u: jax.Array, fu: jax.Array, h: jax.Array) -> _Memory:
    none = (jnp.zeros_like(u),) * WINDOW
    column = jnp.zeros_like(u[:, :1])
    return _Memory(none, none, (column,) * WINDOW, _dot(fu - u, fu - u))


def _step(
    field: Field,
    u: jax.Array,
    fu: jax.Array,
    h: jax.Array,
    memory: _Memory,
    active: jax.Array,
) -> Step:
    new_u = fu - _combine(memory.along, memory.df)
    new_fu = field(new_u, h)
    size = _dot(new_fu - new_u, new_fu - new_u)
    # A plain step is taken as it is. (Not "larger than": a comparison with nan is false.)
    keep = (size <= memory.size) | _all_zero(memory.along)
    new_u, new_fu = jnp.where(keep, new_u, u), jnp.where(keep, new_fu, fu)
    return Step(new_u, new_fu, _remember(memory, u, fu, new_u, new_fu, keep, size), 1)


def _remember(
    memory: _Memory,
    u: jax.Array,
    fu: jax.Array,
    new_u: jax.Array,
    new_fu: jax.Array,
    keep: jax.Array,
    size: jax.Array,
) -> _Memory:
    """Put the newest changes in the place of the oldest; forget all where not `keep`."""
    g = new_fu - new_u
    df, dg = new_fu - fu, g - (fu - u)
    along = [
        jnp.where(keep & (a != 0), _dot(q, g), 0)
        for a, q in zip(memory.along, memory.dg, strict=True)
    ]
    # dg is the change of g, so its products with the others are the change of theirs with g.
    overlap = [jnp.where(new != 0, new - a, 0) for new, a in zip(along, memory.along, strict=True)]
    dg = dg - _combine(overlap, memory.dg)
    df = df - _combine(overlap, memory.df)
    left = _dot(dg, dg)
    # Less than this is the rounding of g.
    good = keep & (left > (10 * jnp.finfo(dg.dtype).eps) ** 2 * memory.size)
    inverse = jnp.where(good, jax.lax.rsqrt(jnp.where(good, left, 1)), 0)
    dg, df = dg * inverse, df * inverse
    return _Memory(
        df=(df, *memory.df[:-1]),
        dg=(dg, *memory.dg[:-1]),
        along=(_dot(dg, g), *along[:-1]),
        size=jnp.where(keep, size, memory.size),
    )


def _all_zero(columns: tuple[jax.Array, ...]) -> jax.Array:
    first, *others = (column == 0 for column in columns)
    for column in others:
        first &= column
    return first


def _combine(factors: Sequence[jax.Array], vectors: Sequence[jax.Array]) -> jax.Array:
    first, *others = (factor * v for factor, v in zip(factors, vectors, strict=True))
    return sum(others, first)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(a * b, axis=1, keepdims=True)
