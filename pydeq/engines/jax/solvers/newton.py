"""Newton's method with GMRES inside."""

from functools import partial

import jax
import jax.numpy as jnp

from pydeq.engines.jax.gmres import gmres
from pydeq.engines.jax.solvers.base import Field, Solver, Step

__all__ = ["newton"]

FORCING = 0.1
HALVINGS = 6


def newton(field: Field) -> Solver:
    """Newton-Krylov: (I - df/du) step = f(u) - u by GMRES, halved until the residual falls."""
    return Solver(_init, partial(_step, field))


def _init(u, fu, h):
    return ()


def _step(field, u, fu, h, memory, active):
    g = fu - u
    _, jacobian = jax.linearize(lambda u: field(u, h), u)
    step, n_products = gmres(lambda v: v - jacobian(v), g, FORCING, active)
    size = jnp.sum(g**2, axis=1)

    def worse(fu_new, u_new):
        return active & ~(jnp.sum((fu_new - u_new) ** 2, axis=1) < size)

    def cond(carry):
        halvings, _, u_new, fu_new, _ = carry
        return (halvings < HALVINGS) & jnp.any(worse(fu_new, u_new))

    def body(carry):
        halvings, scale, u_new, fu_new, n_evals = carry
        again = worse(fu_new, u_new)
        scale = jnp.where(again, 0.5 * scale, scale)
        u_new = u + scale[:, None] * step
        return halvings + 1, scale, u_new, field(u_new, h), n_evals + again

    u_new = u + step
    start = (0, jnp.ones_like(size), u_new, field(u_new, h), n_products + 1)
    _, _, u_new, fu_new, n_evals = jax.lax.while_loop(cond, body, start)
    return Step(u_new, fu_new, memory, n_evals)
