"""Anderson acceleration with a safeguard."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pydeq.engines.jax.solvers.base import Field, Solver, Step

__all__ = ["anderson"]

WINDOW = 3
"""Differences that are kept: on trained cells more gained little, and each costs two passes."""


def anderson(field: Field) -> Solver:
    """Type II of Walker and Ni 2011, section 2, over the last `WINDOW` steps.

    A step that would make ``||f(u) - u||_2`` larger, or not finite, is not taken: the sample goes
    back to plain iteration, u <- f(u), and gathers its window anew. Where f contracts, each plain
    step makes the residual smaller by that factor, so the search ends whatever the window does.
    """
    return Solver(_init, partial(_step, field))


class _Memory(NamedTuple):
    """The window. A slot that a sample does not use has 0 on the diagonal of its gram and in rhs.

    What else is in such a slot does not matter, so that only the newest differences are written.
    """

    k: jax.Array
    dfu: jax.Array  # (m, B, n): differences of successive f(u)
    dg: jax.Array  # (m, B, n): and of g = f(u) - u
    gram: jax.Array  # (m, B, m): products of the dg with each other
    rhs: jax.Array  # (B, m): and with g


def _init(u, fu, h):
    window = jnp.zeros((WINDOW, *u.shape), u.dtype)
    gram = jnp.zeros((WINDOW, len(u), WINDOW), u.dtype)
    rhs = jnp.zeros((len(u), WINDOW), u.dtype)
    return _Memory(jnp.zeros((), jnp.int32), window, window, gram, rhs)


def _step(field, u, fu, h, memory, active):
    gamma = _least_squares(memory.gram, memory.rhs.T)
    new_u = fu - sum(gamma[i][:, None] * memory.dfu[i] for i in range(WINDOW))
    new_fu = field(new_u, h)
    g, new_g = fu - u, new_fu - new_u
    # A plain step is taken as it is. (Not "larger than": a comparison with nan is false.)
    better = jnp.sum(new_g**2, axis=1) <= jnp.sum(g**2, axis=1)
    keep = better | jnp.all(gamma == 0, axis=0)
    row = keep[:, None]
    # What is not taken may be infinite, and a gradient of 0 times that is nan.
    dfu, dg, rest = (jnp.where(row, a, 0) for a in (new_fu - fu, new_g - g, new_g))
    memory = _remember(memory, dfu, dg, rest, keep)
    return Step(jnp.where(row, new_u, u), jnp.where(row, new_fu, fu), memory, 1)


def _remember(memory: _Memory, dfu, dg, g, keep) -> _Memory:
    """Put the newest differences in the place of the oldest; forget all where not `keep`."""
    slot = memory.k % WINDOW
    all_dfu, all_dg = _put(memory.dfu, dfu, slot), _put(memory.dg, dg, slot)
    rhs = jnp.stack([jnp.sum(all_dg[i] * g, axis=1) for i in range(WINDOW)])
    # dg is the change of g, so its products with the others are the change of theirs with g.
    products = _put(rhs - memory.rhs.T, jnp.sum(dg**2, axis=1), slot)
    used = keep & ((jnp.arange(WINDOW) == slot)[:, None] | (_diagonal(memory.gram) > 0))
    products, rhs = jnp.where(used, products, 0), jnp.where(used, rhs, 0)
    gram = jnp.where(keep[:, None], memory.gram, 0)
    gram = _put(_put(gram, products.T, slot), products, slot, axis=2)
    return _Memory(memory.k + 1, all_dfu, all_dg, gram, rhs.T)


def _put(array: jax.Array, value: jax.Array, slot: jax.Array, axis: int = 0) -> jax.Array:
    """Write in place what ``array.at[slot].set(value)`` would copy."""
    return jax.lax.dynamic_update_index_in_dim(array, value, slot, axis)


def _diagonal(gram: jax.Array) -> jax.Array:
    return jnp.stack([gram[i, :, i] for i in range(WINDOW)])


def _least_squares(gram: jax.Array, rhs: jax.Array) -> jax.Array:
    """Solve ``gram gamma = rhs`` ``(m, B)`` for every sample, by Gauss without pivots.

    The matrices are semidefinite. Those of unused slots are 0: the ridge keeps the system solvable
    and gives them weight 0.
    """
    m = len(gram)
    diagonal = [gram[i, :, i] for i in range(m)]
    trace = sum(diagonal)
    ridge = jnp.where(trace > 0, 10 * jnp.finfo(gram.dtype).eps * trace, 1)
    a = [[gram[i, :, j] for j in range(m)] for i in range(m)]
    b = [rhs[i] for i in range(m)]
    for i in range(m):
        a[i][i] = a[i][i] + ridge
    for k in range(m):
        for i in range(k + 1, m):
            factor = a[i][k] / a[k][k]
            for j in range(k + 1, m):
                a[i][j] = a[i][j] - factor * a[k][j]
            b[i] = b[i] - factor * b[k]
    for k in reversed(range(m)):
        b[k] = (b[k] - sum(a[k][j] * b[j] for j in range(k + 1, m))) / a[k][k]
    return jnp.stack(b)
