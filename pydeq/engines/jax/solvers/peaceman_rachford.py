"""Peaceman-Rachford splitting, for the monotone cell."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from pydeq.engines.jax.cell import activation
from pydeq.engines.jax.solvers.base import Controls, Field, Solver, Step

__all__ = ["peaceman_rachford"]


def peaceman_rachford(field: Field, controls: Controls) -> Solver:
    """Winston and Kolter 2020, algorithm 2, with step 1: there act itself is the resolvent needed.

    With s = h + b, an iteration from w, of which act(w) is known, is v = 2 act(w) - w,
    z = (v + s) (2 I - W)^-1 and w <- 2 z - v. By the second, z W + s = 2 z - v, the next w: so
    act(w) is the cell at the state z, and each iteration takes one product with a matrix.
    """
    weight, bias = (field.weights[f"cell.0.{name}"] for name in ("weight", "bias"))
    resolvent = jnp.linalg.inv(2 * jnp.eye(len(weight), dtype=weight.dtype) - weight)
    act = activation(field.model)
    return Solver(partial(_init, weight, bias), partial(_step, resolvent, bias, act))


def _init(
    weight: jax.Array, bias: jax.Array, u: jax.Array, fu: jax.Array, h: jax.Array
) -> jax.Array:
    return u @ weight + h + bias


def _step(
    resolvent: jax.Array,
    bias: jax.Array,
    act: Callable[[jax.Array], jax.Array],
    u: jax.Array,
    fu: jax.Array,
    h: jax.Array,
    memory: jax.Array,
    active: jax.Array,
) -> Step:
    v = 2 * fu - memory
    z = (v + h + bias) @ resolvent
    memory = 2 * z - v
    return Step(z, act(memory), memory, 1)
