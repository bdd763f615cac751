"""Restarted GMRES for many small systems at once, each stopping on its own.

lineax's GMRES tests its residual once a restart cycle; an equilibrium's adjoint needs fewer
products with the Jacobian than a cycle has steps, so it would pay for the whole cycle every time.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["gmres"]

RESTART = 20
"""Longest Krylov basis that is kept."""

MAX_CYCLES = 25


class _Cycle(NamedTuple):
    """A cycle after j steps: B systems of n unknowns, a basis of at most m vectors.

    The least-squares problem min ||beta e1 - H y|| is kept solved: `ortho` holds the
    orthonormalised columns of the Hessenberg matrix H, `directions` the matching combinations of
    the basis, `coef` what is left of beta e1.
    """

    j: jax.Array
    active: jax.Array  # (B,)
    x: jax.Array  # (B, n)
    basis: jax.Array  # (m + 1, B, n)
    directions: jax.Array  # (m, B, n)
    ortho: jax.Array  # (m, m + 1, B)
    coef: jax.Array  # (m + 1, B)
    n_products: jax.Array  # (B,)


def gmres(
    product: Callable[[jax.Array], jax.Array],
    b: jax.Array,
    rtol: jax.Array | float,
    active: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Solve ``product(x) = b`` for every row (Saad and Schultz 1986).

    A row ends when it is solved, when a cycle did not halve its residual, or after `MAX_CYCLES`.

    Parameters
    ----------
    product : callable
        Linear, ``(B, n)`` to ``(B, n)``, acting on each row by itself.
    b : jax.Array (B, n)
    rtol : scalar
        A row is solved when its residual's 2-norm is at most ``rtol`` times that of its `b`; taken
        as at least ten times the dtype's precision.
    active : jax.Array of bool (B,)
        Rows to solve; the others come back 0.

    Returns
    -------
    x : jax.Array (B, n)
    n_products : jax.Array of int32 (B,)
        Products that the row took.
    """
    b = jnp.where(active[:, None], b, 0)
    norm_b = _norm(b)
    target = jnp.maximum(rtol, 10 * jnp.finfo(b.dtype).eps) * norm_b

    def cond(carry):
        cycle, active, *_ = carry
        return (cycle < MAX_CYCLES) & jnp.any(active)

    def body(carry):
        cycle, active, x, last, n_products = carry
        r = jax.lax.cond(cycle == 0, lambda: b, lambda: b - product(x))
        norm_r = _norm(r)
        going = active & (norm_r > target) & ((cycle == 0) | (norm_r < 0.5 * last))
        end = _run_cycle(product, x, r, target, going, n_products + (active & (cycle > 0)))
        unsolved = jnp.sqrt(jnp.sum(end.coef**2, axis=0)) > target
        return cycle + 1, going & unsolved, end.x, norm_r, end.n_products

    n_products = jnp.zeros(b.shape[0], jnp.int32)
    start = (0, active, jnp.zeros_like(b), norm_b, n_products)
    _, _, x, _, n_products = jax.lax.while_loop(cond, body, start)
    return x, n_products


def _run_cycle(product, x, r, target, active, n_products) -> _Cycle:
    """Improve `x`, whose residual is `r`, over one Krylov basis."""
    m = min(RESTART, r.shape[1])
    batch, n = r.shape
    beta = _norm(r)
    start = _Cycle(
        j=jnp.zeros((), jnp.int32),
        active=active,
        x=x,
        basis=jnp.zeros((m + 1, batch, n), r.dtype).at[0].set(r / _nonzero(beta)[:, None]),
        directions=jnp.zeros((m, batch, n), r.dtype),
        ortho=jnp.zeros((m, m + 1, batch), r.dtype),
        coef=jnp.zeros((m + 1, batch), r.dtype).at[0].set(beta),
        n_products=n_products,
    )
    return jax.lax.while_loop(
        lambda s: (s.j < m) & jnp.any(s.active), lambda s: _step(product, s, target), start
    )


def _step(product, s: _Cycle, target) -> _Cycle:
    """Add one vector to the basis and one direction to the solution."""
    v = s.basis[s.j]
    w, column = _orthogonalise(product(v), s.basis, axis=2)
    height = _norm(w)
    column = column.at[s.j + 1].set(height)
    t, r = _orthogonalise(column, s.ortho, axis=1)
    size = jnp.sqrt(jnp.sum(t**2, axis=0))
    t = t / _nonzero(size)
    direction = (v - jnp.sum(r[:, :, None] * s.directions, axis=0)) / _nonzero(size)[:, None]
    gain = jnp.sum(t * s.coef, axis=0)
    good = s.active & (size > 0) & jnp.isfinite(gain)
    coef = jnp.where(good, s.coef - gain * t, s.coef)
    left = jnp.sqrt(jnp.sum(coef**2, axis=0))
    return _Cycle(
        j=s.j + 1,
        active=good & (left > target) & (height > 0),
        x=jnp.where(good[:, None], s.x + gain[:, None] * direction, s.x),
        basis=s.basis.at[s.j + 1].set(w / _nonzero(height)[:, None]),
        directions=s.directions.at[s.j].set(direction),
        ortho=s.ortho.at[s.j].set(t),
        coef=coef,
        n_products=s.n_products + s.active,
    )


def _orthogonalise(w: jax.Array, basis: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Take from `w` its part in the span of `basis`, by Gram-Schmidt twice.

    Parameters
    ----------
    w : jax.Array
        One vector a system.
    basis : jax.Array (k, ...)
        Orthonormal vectors of each system along `axis`; those not yet used are 0.

    Returns
    -------
    w : jax.Array
        What is left.
    coefficients : jax.Array (k, B)
    """
    total = jnp.zeros((), w.dtype)
    for _ in range(2):
        c = jnp.sum(basis * w, axis=axis, keepdims=True)
        w = w - jnp.sum(c * basis, axis=0)
        total = total + c
    return w, jnp.squeeze(total, axis)


def _norm(r: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(r**2, axis=1))


def _nonzero(x: jax.Array) -> jax.Array:
    """Stand in 1 for 0, to divide by."""
    return jnp.where(x > 0, x, 1)
