"""Plain iteration."""

import jax

from pydeq.engines.jax.solvers.base import Controls, Field, Solver, Step

__all__ = ["fixed_point"]


def fixed_point(field: Field, controls: Controls) -> Solver:
    """Plain iteration: u <- f(u)."""

    def step(u: jax.Array, fu: jax.Array, h: jax.Array, memory: tuple, active: jax.Array) -> Step:
        return Step(fu, field(fu, h), memory, 1)

    return Solver(lambda u, fu, h: (), step)
