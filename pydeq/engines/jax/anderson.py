"""Anderson acceleration with a safeguard."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pydeq.engines.jax.iteration import Field, Solver, Step

__all__ = ["anderson"]

WINDOW = 3
"""Differences that are kept: on trained cells more gained nothing, and each costs two passes."""


def anderson(field: Field) -> Solver:
    """Type II of Walker and Ni 2011, section 2, over the last `WINDOW` steps.

    A step that would make ``||f(u) - u||_2`` larger, or not finite, is not taken: the sample goes
    back to plain iteration, u <- f(u), and gathers its window anew. Where f contracts, each plain
    step makes the residual smaller by that factor, so the search ends whatever the window does.
    """
    return Solver(_init, partial(_step, field))


class _Memory(NamedTuple):
    k: jax.Array
    dfu: jax.Array  # (m, B, n): differences of successive f(u)
    dg: jax.Array  # (m, B, n): and of g = f(u) - u; 0 where there is none
    gram: jax.Array  # (m, B, m): products of the dg with each other


def _init(u, fu, h):
    window = jnp.zeros((WINDOW, *u.shape), u.dtype)
    gram = jnp.zeros((WINDOW, len(u), WINDOW), u.dtype)
    return _Memory(jnp.zeros((), jnp.int32), window, window, gram)


def _step(field, u, fu, h, memory, active):
    g = fu - u
    rhs = jnp.sum(memory.dg * g, axis=2)
    gamma = _least_squares(memory.gram, rhs)
    new_u = fu - jnp.sum(gamma[:, :, None] * memory.dfu, axis=0)
    new_fu = field(new_u, h)
    new_g = new_fu - new_u
    # A plain step is taken as it is. (Not "larger than": a comparison with nan is false.)
    better = jnp.sum(new_g**2, axis=1) <= jnp.sum(g**2, axis=1)
    keep = better | jnp.all(gamma == 0, axis=0)
    row = keep[:, None]
    memory = _remember(memory, new_fu - fu, new_g - g, keep)
    return Step(jnp.where(row, new_u, u), jnp.where(row, new_fu, fu), memory, 1)


def _remember(memory: _Memory, dfu, dg, keep) -> _Memory:
    """Put the newest differences in the place of the oldest; forget all where not `keep`."""
    slot = memory.k % WINDOW
    row = keep[:, None]
    all_dfu = jnp.where(row, memory.dfu.at[slot].set(dfu), 0)
    all_dg = jnp.where(row, memory.dg.at[slot].set(dg), 0)
    products = jnp.sum(all_dg * dg, axis=2)
    gram = memory.gram.at[slot].set(products.T).at[:, :, slot].set(products)
    return _Memory(memory.k + 1, all_dfu, all_dg, jnp.where(row, gram, 0))


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
