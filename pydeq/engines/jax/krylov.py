"""Linear systems, many small ones at once, each row stopping on its own.

lineax's GMRES tests its residual once a restart cycle; an equilibrium's adjoint needs fewer
products with the Jacobian than a cycle has steps, so it would pay for the whole cycle every time.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["solve_linear"]

WINDOW = 1
"""Directions that are kept. Two take as many products where the cell contracts, and longer."""

PATIENCE, MAX_STEPS = 40, 480
"""In so many steps a row must halve its residual; and the most steps that it may take.

A cell that is no contraction may gain little for some steps. Given up at 8, the loss curve of
`tests/test_parity.py` left Julia's by 3 % in 100 steps; at 40 it stays within 5e-5.
"""

NO_GAIN = 0.999


class _State(NamedTuple):
    """A search under way; the newest direction comes first, and the q = A p are orthonormal."""

    step: jax.Array  # ()
    active: jax.Array  # (B,)
    turn: jax.Array  # (B,): the last step gained next to nothing
    x: jax.Array  # (B, n)
    r: jax.Array  # (B, n): b - A x
    size: jax.Array  # (B,): norm of r
    before: jax.Array  # (B,): what it was some steps ago
    p: tuple[jax.Array, ...]  # WINDOW of (B, n)
    q: tuple[jax.Array, ...]
    n_products: jax.Array  # (B,)


def solve_linear(
    product: Callable[[jax.Array], jax.Array],
    b: jax.Array,
    rtol: jax.Array | float,
    active: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Solve ``product(x) = b`` for every row by ORTHOMIN (Vinsome 1976; Young and Jea 1980).

    Each step makes the residual as small as it can be along r and the `WINDOW` directions before,
    which converges wherever the symmetric part of the map is definite, as that of I - J is if J
    contracts (Eisenstat, Elman and Schultz 1983). A step that gains nothing, as where the map
    turns r by a right angle, is followed by one along A r instead (ORTHODIR's direction).
    A row ends when it is solved, when `PATIENCE` steps did not halve its residual, or after
    `MAX_STEPS`.

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
    size = _norm(b)
    target = jnp.maximum(rtol, 10 * jnp.finfo(b.dtype).eps) * size
    zeros = (jnp.zeros_like(b),) * WINDOW
    start = _State(
        step=jnp.zeros((), jnp.int32),
        active=active & (size > 0),
        turn=jnp.zeros_like(active),
        x=zeros[0],
        r=b,
        size=size,
        before=size,
        p=zeros,
        q=zeros,
        n_products=jnp.zeros(len(b), jnp.int32),
    )

    def cond(s: _State) -> jax.Array:
        return (s.step < MAX_STEPS) & jnp.any(s.active)

    end = jax.lax.while_loop(cond, lambda s: _advance(product, target, s), start)
    return end.x, end.n_products


def _advance(product: Callable[[jax.Array], jax.Array], target: jax.Array, s: _State) -> _State:
    """Go along one more direction."""
    d = jnp.where(s.turn[:, None], s.q[0], s.r)
    w = product(d)
    overlaps = [jnp.sum(v * w, axis=1, keepdims=True) for v in s.q]
    q = w - _combine(overlaps, s.q)
    p = d - _combine(overlaps, s.p)
    length = _norm(q)
    # What is left of w after its overlaps may be rounding alone: then there is nowhere to go.
    rounding = 10 * jnp.finfo(w.dtype).eps * jnp.where(s.turn, 1, s.size)
    good = s.active & (length > rounding) & jnp.isfinite(length)
    inverse = jnp.where(good, 1 / jnp.where(good, length, 1), 0)[:, None]
    q, p = (jnp.where(good[:, None], v * inverse, 0) for v in (q, p))
    along = jnp.sum(q * s.r, axis=1, keepdims=True)
    r = s.r - along * q
    size = _norm(r)
    checks = (s.step + 1) % PATIENCE == 0
    stalls = checks & (size > 0.5 * s.before)
    return _State(
        step=s.step + 1,
        active=good & (size > target) & ~stalls,
        turn=size > NO_GAIN * s.size,
        x=s.x + along * p,
        r=r,
        size=size,
        before=jnp.where(checks, size, s.before),
        p=(p, *s.p[:-1]),
        q=(q, *s.q[:-1]),
        n_products=s.n_products + s.active,
    )


def _combine(factors: Sequence[jax.Array], vectors: Sequence[jax.Array]) -> jax.Array:
    first, *others = (factor * v for factor, v in zip(factors, vectors, strict=True))
    return sum(others, first)


def _norm(r: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(r**2, axis=1))
