"""Restarted GMRES for many small systems at once, each stopping on its own.

lineax's GMRES tests its residual once a restart cycle; an equilibrium's adjoint needs fewer
products with the Jacobian than a cycle has steps, so it would pay for the whole cycle every time.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["gmres"]

RESTART = 8
"""Longest Krylov basis that is kept; each is a piece of the compiled code."""

MAX_CYCLES = 60


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
        end = _run_cycle(product, r, target, going)
        n_products = n_products + (active & (cycle > 0)) + end.n_products
        return cycle + 1, going & (end.left > target), x + end.x, norm_r, n_products

    n_products = jnp.zeros(b.shape[0], jnp.int32)
    start = (0, active, jnp.zeros_like(b), norm_b, n_products)
    _, _, x, _, n_products = jax.lax.while_loop(cond, body, start)
    return x, n_products


class _End(NamedTuple):
    """What a cycle came to."""

    x: jax.Array  # (B, n): what to add to the solution
    left: jax.Array  # (B,): norm of the residual that is left
    n_products: jax.Array  # (B,)


class _Krylov(NamedTuple):
    """A cycle after j steps: an orthonormal basis and the least-squares problem over it.

    With H the Hessenberg matrix, min ||beta e1 - H y|| is kept triangular by Givens rotations. The
    column of a step that did a row no good is that of the identity and gives it y_j = 0.
    """

    basis: list[jax.Array]  # j + 1 of (B, n)
    columns: list[list[jax.Array]]  # j of the triangular matrix, the k-th with k + 1 of (B,)
    rotations: list[tuple[jax.Array, jax.Array]]  # j cosines and sines (B,)
    rhs: list[jax.Array]  # j of (B,)
    rest: jax.Array  # (B,): what the right-hand side has below them
    active: jax.Array  # (B,)
    n_products: jax.Array  # (B,)


def _run_cycle(product, r: jax.Array, target: jax.Array, active: jax.Array) -> _End:
    """Solve ``product(x) = r`` over one Krylov basis.

    A step works on the vectors that there are and no more, which a loop over a fixed array could
    not do: the steps are nested in one another, each entered while a row needs it.
    """
    steps = min(RESTART, r.shape[1])

    def go_on(s: _Krylov) -> _End:
        if len(s.columns) == steps:
            return _finish(s)
        return jax.lax.cond(
            jnp.any(s.active), lambda: go_on(_extend(product, s, target)), lambda: _finish(s)
        )

    beta = _norm(r)
    none = jnp.zeros(len(r), jnp.int32)
    return go_on(_Krylov([r / _nonzero(beta)[:, None]], [], [], [], beta, active, none))


def _extend(product, s: _Krylov, target: jax.Array) -> _Krylov:
    """Add a vector to the basis, by modified Gram-Schmidt, and a column to the problem."""
    w = product(s.basis[-1])
    column = []
    for v in s.basis:
        column.append(jnp.sum(w * v, axis=1))
        w = w - column[-1][:, None] * v
    height = _norm(w)
    for i, (cos, sin) in enumerate(s.rotations):
        above, below = column[i], column[i + 1]
        column[i], column[i + 1] = cos * above + sin * below, cos * below - sin * above
    size = jnp.sqrt(column[-1] ** 2 + height**2)
    good = s.active & (size > 0) & jnp.isfinite(size)
    cos, sin = column[-1] / _nonzero(size), height / _nonzero(size)
    column = [*(jnp.where(good, entry, 0) for entry in column[:-1]), jnp.where(good, size, 1)]
    rest = jnp.where(good, -sin * s.rest, s.rest)
    return _Krylov(
        basis=[*s.basis, jnp.where(good[:, None], w / _nonzero(height)[:, None], 0)],
        columns=[*s.columns, column],
        rotations=[*s.rotations, (cos, sin)],
        rhs=[*s.rhs, jnp.where(good, cos * s.rest, 0)],
        rest=rest,
        active=good & (jnp.abs(rest) > target) & (height > 0),
        n_products=s.n_products + s.active,
    )


def _finish(s: _Krylov) -> _End:
    """Solve the triangular system and combine the basis."""
    y = list(s.rhs)
    for k in reversed(range(len(y))):
        known = sum(s.columns[i][k] * y[i] for i in range(k + 1, len(y)))
        y[k] = (y[k] - known) / s.columns[k][k]
    x = sum((c[:, None] * v for c, v in zip(y, s.basis, strict=False)), jnp.zeros_like(s.basis[0]))
    return _End(x, jnp.abs(s.rest), s.n_products)


def _norm(r: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(r**2, axis=1))


def _nonzero(x: jax.Array) -> jax.Array:
    """Stand in 1 for 0, to divide by."""
    return jnp.where(x > 0, x, 1)
