"""Newton's method with a Krylov method inside."""

from functools import partial

import jax
import jax.numpy as jnp

from pydeq.engines.jax.krylov import solve_linear
from pydeq.engines.jax.solvers.base import Controls, Field, Solver, Step

__all__ = ["newton"]

FORCING = 0.1
HALVINGS = 6

_Carry = tuple[jax.Array | int, jax.Array, jax.Array, jax.Array, jax.Array]
"""Halvings, the step's share, u and f(u) there, evaluations."""


def newton(field: Field, controls: Controls) -> Solver:
    """(I - df/du) step = f(u) - u by `solve_linear`; the step is halved till the residual falls."""
    return Solver(_init, partial(_step, field))


def _init(u: jax.Array, fu: jax.Array, h: jax.Array) -> tuple[()]:
    return ()


def _step(
    field: Field,
    u: jax.Array,
    fu: jax.Array,
    h: jax.Array,
    memory: tuple[()],
    active: jax.Array,
) -> Step:
    g = fu - u
    # The derivative along v, as the derivative of the pullback, which is linear: `correlate` has no
    # other.
    _, pullback = jax.vjp(lambda u: field(u, h), u)
    _, jacobian = jax.vjp(pullback, jnp.zeros_like(u))
    step, n_products = solve_linear(lambda v: v - jacobian((v,))[0], g, FORCING, active)
    size = jnp.sum(g**2, axis=1)

    def worse(fu_new: jax.Array, u_new: jax.Array) -> jax.Array:
        return active & ~(jnp.sum((fu_new - u_new) ** 2, axis=1) < size)

    def cond(carry: _Carry) -> jax.Array:
        halvings, _, u_new, fu_new, _ = carry
        return (halvings < HALVINGS) & jnp.any(worse(fu_new, u_new))

    def body(carry: _Carry) -> _Carry:
        halvings, scale, u_new, fu_new, n_evals = carry
        again = worse(fu_new, u_new)
        scale = jnp.where(again, 0.5 * scale, scale)
        u_new = u + scale[:, None] * step
        return halvings + 1, scale, u_new, field(u_new, h), n_evals + again

    u_new = u + step
    start = (0, jnp.ones_like(size), u_new, field(u_new, h), n_products + 1)
    _, _, u_new, fu_new, n_evals = jax.lax.while_loop(cond, body, start)
    return Step(u_new, fu_new, memory, n_evals)
