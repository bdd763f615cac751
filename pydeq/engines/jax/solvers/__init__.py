"""The searches for a steady state: one loop, and a file for each solver."""

from pydeq.engines.jax.solvers.base import Controls, Field
from pydeq.engines.jax.solvers.search import Solution, find_equilibrium

__all__ = [
    "Controls",
    "Field",
    "Solution",
    "find_equilibrium",
]
