"""What every solver shares: the field, the numbers that control a search, the form of a step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pydeq.engines.jax.cell import Acting, cell
from pydeq.model import ModelSpec

__all__ = ["Controls", "Field", "Solver", "Step", "is_steady"]


class Controls(NamedTuple):
    """The numbers of a search; as arguments of what is compiled, changing one is free."""

    abstol: jax.Array
    reltol: jax.Array
    ode_abstol: jax.Array
    ode_reltol: jax.Array
    max_steps: jax.Array  # int32
    horizon: jax.Array  # where there is one


class Field(NamedTuple):
    """The cell with its weights: ``field(u, h)`` is f, each row ``(B, n_state)`` by itself."""

    model: ModelSpec
    weights: Acting

    def __call__(self, u: jax.Array, h: jax.Array) -> jax.Array:
        """Return f(u, h)."""
        return cell(self.model, self.weights, u, h)


class Step(NamedTuple):
    """What one step of a solver gives back."""

    u: jax.Array  # (B, n)
    fu: jax.Array  # (B, n): f evaluated at u
    memory: Any
    n_evals: jax.Array | int


class Solver(NamedTuple):
    """A solver is an initial memory and a step.

    In the arrays of a memory the samples are the axis before the last, or the only one; a scalar
    is shared by all.
    """

    init: Callable[..., Any]
    """``init(u, fu, h)`` to the memory."""

    step: Callable[..., Step]
    """``step(u, fu, h, memory, active)``; what it does to samples that are not active is void."""


def is_steady(u: jax.Array, fu: jax.Array, controls: Controls) -> jax.Array:
    """Return per sample whether ``||f - u|| <= abstol`` or ``<= reltol ||f||``, maximum norms.

    SteadyStateDiffEq's rule for ``DynamicSS`` (``du + u`` is f here), sample by sample.
    """
    du = jnp.max(jnp.abs(fu - u), axis=1)
    near = (du <= controls.abstol) | (du <= controls.reltol * jnp.max(jnp.abs(fu), axis=1))
    return near & jnp.isfinite(du)  # infinity is not at most infinity
