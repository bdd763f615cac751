"""The searches for a steady state: one loop, and a file for each solver."""

from pydeq.engines.jax.solvers.base import Controls, Field
from pydeq.engines.jax.solvers.search import Solution, solve

__all__ = [
    "Controls",
    "Field",
    "Solution",
    "solve",
]
