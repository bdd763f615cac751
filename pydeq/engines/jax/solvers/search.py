"""Steady states of du/dt = f(u, h) - u for a batch: all solvers under one loop.

The loop does what they share: every sample stops by itself, so that its answer does not depend on
its batch; those that are done leave, so that the slowest does not cost the whole batch; evaluations
are counted per sample.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pydeq.engines.jax.solvers.anderson import anderson
from pydeq.engines.jax.solvers.base import Controls, Field, Solver, is_steady
from pydeq.engines.jax.solvers.broyden import broyden
from pydeq.engines.jax.solvers.fixed_point import fixed_point
from pydeq.engines.jax.solvers.newton import newton
from pydeq.engines.jax.solvers.peaceman_rachford import peaceman_rachford
from pydeq.engines.jax.solvers.tsit5 import tsit5
from pydeq.model import Solver as SolverName

__all__ = ["REGISTRY", "Solution", "find_equilibrium"]

REGISTRY: dict[SolverName, Callable[[Field, Controls], Solver]] = {
    "tsit5": tsit5,
    "anderson": anderson,
    "broyden": broyden,
    "newton": newton,
    "fixed_point": fixed_point,
    "peaceman_rachford": peaceman_rachford,
}
"""Every solver by name."""

COMPACTION = 4
"""What a batch shrinks by when so many of its samples are done."""

FEWEST_ROWS = 16
"""A batch that is not larger does not shrink."""


class Solution(NamedTuple):
    """Where the search ended for each of B samples."""

    u: jax.Array  # (B, n)
    fu: jax.Array  # (B, n): f evaluated at u
    n_evals: jax.Array  # (B,) int32
    converged: jax.Array  # (B,) bool


class _State(NamedTuple):
    """A search under way; in the arrays of a memory, see :class:`Solver`."""

    active: jax.Array  # (B,)
    u: jax.Array  # (B, n)
    fu: jax.Array  # (B, n)
    h: jax.Array  # (B, n)
    memory: Any
    n_evals: jax.Array  # (B,)


_Carry = tuple[jax.Array, _State]
"""Steps taken, and the search."""


def find_equilibrium(
    name: SolverName,
    field: Field,
    u0: jax.Array,
    h: jax.Array,
    active: jax.Array,
    controls: Controls,
    compact: bool = False,
    unroll: int | None = None,
) -> Solution:
    """Search the steady state of du/dt = f(u, h) - u from u(0) = u0.

    Parameters
    ----------
    name : str
        One of :data:`pydeq.model.SOLVERS`.
    field : Field
    u0, h : jax.Array (B, n)
    active : jax.Array of bool (B,)
        The samples to solve; the others are padding and take no step.
    controls : Controls
    compact : bool
        Go on in smaller batches when most samples are done. Each size is a copy of the loop in the
        compiled code.
    unroll : int or None
        Static ``max_steps`` for a loop that can be differentiated in reverse, or None.
    """
    solver = REGISTRY[name](field, controls)
    fu0 = field(u0, h)
    n_evals = jnp.where(active, 2 if field.model.init == "cell" else 1, 0)
    active = active & _unfinished(u0, fu0, controls)
    state = _State(active, u0, fu0, h, solver.init(u0, fu0, h), n_evals)
    start = (jnp.zeros((), jnp.int32), state)
    body = partial(_advance, solver, controls)
    if unroll is None:
        state = _search(body, controls, start, FEWEST_ROWS if compact else len(h))
    else:
        import equinox.internal as eqxi  # takes long to load, and few need it

        cond = partial(_goes_on, controls, 0)
        _, state = eqxi.while_loop(cond, body, start, max_steps=unroll, kind="checkpointed")
    return Solution(state.u, state.fu, state.n_evals, is_steady(state.u, state.fu, controls))


def _search(
    body: Callable[[_Carry], _Carry], controls: Controls, start: _Carry, fewest: int
) -> _State:
    """Step until all are done, in ever smaller batches as long as they are larger than `fewest`."""
    rows = len(start[1].active)
    fewer = rows // COMPACTION if rows > fewest else 0
    n_steps, state = jax.lax.while_loop(partial(_goes_on, controls, fewer), body, start)
    if not fewer:
        return state
    index = jnp.argsort(~state.active)[:fewer]  # those that are not done come first
    part = _search(body, controls, (n_steps, jax.tree.map(partial(_rows, index), state)), fewest)
    return state._replace(
        u=state.u.at[index].set(part.u),
        fu=state.fu.at[index].set(part.fu),
        n_evals=state.n_evals.at[index].set(part.n_evals),
    )


def _rows(index: jax.Array, array: jax.Array) -> jax.Array:
    """Return the samples at `index`, of arrays as :class:`Solver` describes them."""
    return array if array.ndim == 0 else jnp.take(array, index, axis=max(array.ndim - 2, 0))


def _goes_on(controls: Controls, fewer: int, carry: _Carry) -> jax.Array:
    n_steps, state = carry
    return (n_steps < controls.max_steps) & (jnp.sum(state.active) > fewer)


def _advance(solver: Solver, controls: Controls, carry: _Carry) -> _Carry:
    """Take one step with the samples that are active."""
    n_steps, state = carry
    active, row = state.active, state.active[:, None]
    new = solver.step(state.u, state.fu, state.h, state.memory, active)
    u, fu = jnp.where(row, new.u, state.u), jnp.where(row, new.fu, state.fu)
    return n_steps + 1, _State(
        active=active & _unfinished(u, fu, controls),
        u=u,
        fu=fu,
        h=state.h,
        memory=new.memory,
        n_evals=state.n_evals + jnp.where(active, new.n_evals, 0),
    )


def _unfinished(u: jax.Array, fu: jax.Array, controls: Controls) -> jax.Array:
    is_finite = jnp.isfinite(jnp.max(jnp.abs(fu), axis=1))  # of which is_steady takes the maximum
    return ~is_steady(u, fu, controls) & is_finite
