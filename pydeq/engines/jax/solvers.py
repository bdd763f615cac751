"""Steady states of du/dt = f(u) - u for a batch: four solvers under one loop.

A solver is an initial memory and a step. The loop does what they share: every sample stops by
itself, so that its answer does not depend on its batch, and evaluations are counted per sample.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox.internal as eqxi
import jax
import jax.numpy as jnp

from pydeq.engines.jax.gmres import gmres

__all__ = ["Controls", "Solution", "solve"]

Field = Callable[[jax.Array], jax.Array]
"""The cell at given h: u ``(B, n)`` to f(u, h) ``(B, n)``, each row by itself."""

ANDERSON_WINDOW = 5
NEWTON_FORCING = 0.1
NEWTON_HALVINGS = 6


class Controls(NamedTuple):
    """The numbers of :class:`pydeq.spec.SolverSpec`; tracers, so that changing one is free."""

    abstol: Any
    reltol: Any
    ode_abstol: Any
    ode_reltol: Any
    max_steps: Any


class Solution(NamedTuple):
    """Where the search ended for each of B samples."""

    u: jax.Array  # (B, n)
    fu: jax.Array  # (B, n): f evaluated at u
    n_evals: jax.Array  # (B,) int32
    converged: jax.Array  # (B,) bool


class _Step(NamedTuple):
    """What one step of a solver gives back."""

    u: jax.Array
    fu: jax.Array
    memory: Any
    n_evals: jax.Array | int


def is_steady(u: jax.Array, fu: jax.Array, controls: Controls) -> jax.Array:
    """Return per sample whether ``||f - u|| <= abstol`` or ``<= reltol ||f||``, maximum norms.

    SteadyStateDiffEq's rule for ``DynamicSS`` (``du + u`` is f here), sample by sample.
    """
    du = jnp.max(jnp.abs(fu - u), axis=1)
    near = (du <= controls.abstol) | (du <= controls.reltol * jnp.max(jnp.abs(fu), axis=1))
    return near & jnp.isfinite(du)  # infinity is not at most infinity


def solve(
    name: str,
    f: Field,
    u0: jax.Array,
    active: jax.Array,
    controls: Controls,
    unroll: int | None = None,
) -> Solution:
    """Search the steady state from `u0` for the samples that are `active`.

    Parameters
    ----------
    name : str
        One of :data:`pydeq.spec.SOLVERS`.
    f : callable
    u0 : jax.Array (B, n)
    active : jax.Array of bool (B,)
        The others are padding: they take no step.
    controls : Controls
    unroll : int or None
        Static ``max_steps`` for a loop that can be differentiated in reverse, or None.
    """
    init, step = _SOLVERS[name]
    fu0 = f(u0)

    def cond(carry):
        n_steps, active, *_ = carry
        return (n_steps < controls.max_steps) & jnp.any(active)

    def body(carry):
        n_steps, active, u, fu, memory, n_evals = carry
        new = step(f, u, fu, memory, active, controls)
        u = jnp.where(active[:, None], new.u, u)
        fu = jnp.where(active[:, None], new.fu, fu)
        n_evals = n_evals + jnp.where(active, new.n_evals, 0)
        return n_steps + 1, active & _unfinished(u, fu, controls), u, fu, new.memory, n_evals

    start = (
        jnp.zeros((), jnp.int32),
        active & _unfinished(u0, fu0, controls),
        u0,
        fu0,
        init(u0, fu0, controls),
        jnp.where(active, 2, 0),  # f(0), which is u0, and f(u0)
    )
    if unroll is None:
        end = jax.lax.while_loop(cond, body, start)
    else:
        end = eqxi.while_loop(cond, body, start, max_steps=unroll, kind="checkpointed")
    _, _, u, fu, _, n_evals = end
    return Solution(u, fu, n_evals, is_steady(u, fu, controls))


def _unfinished(u, fu, controls):
    return ~is_steady(u, fu, controls) & jnp.all(jnp.isfinite(fu), axis=1)


# Plain iteration: u <- f(u).


def _fixed_point_init(u, fu, controls):
    return ()


def _fixed_point_step(f, u, fu, memory, active, controls):
    return _Step(fu, f(fu), memory, 1)


# Anderson acceleration, type II (Walker and Ni 2011, section 2), over a window of past steps.


class _Anderson(NamedTuple):
    k: jax.Array
    du: jax.Array  # (m, B, n): differences of successive u
    dg: jax.Array  # (m, B, n): and of their g = f(u) - u


def _anderson_init(u, fu, controls):
    window = jnp.zeros((ANDERSON_WINDOW, *u.shape), u.dtype)
    return _Anderson(jnp.zeros((), jnp.int32), window, window)


def _anderson_step(f, u, fu, memory, active, controls):
    g = fu - u
    gram = jnp.einsum("ibn,jbn->bij", memory.dg, memory.dg)
    # Unused slots are 0: the ridge keeps the system solvable and gives them weight 0.
    trace = jnp.trace(gram, axis1=1, axis2=2)
    ridge = jnp.where(trace > 0, 10 * jnp.finfo(u.dtype).eps * trace, 1)
    gram = gram + ridge[:, None, None] * jnp.eye(ANDERSON_WINDOW, dtype=u.dtype)
    rhs = jnp.einsum("ibn,bn->bi", memory.dg, g)
    gamma = jnp.linalg.solve(gram, rhs[:, :, None])[:, :, 0]
    new_u = fu - jnp.einsum("bi,ibn->bn", gamma, memory.du + memory.dg)
    new_fu = f(new_u)
    slot = memory.k % ANDERSON_WINDOW
    memory = _Anderson(
        memory.k + 1,
        memory.du.at[slot].set(new_u - u),
        memory.dg.at[slot].set((new_fu - new_u) - g),
    )
    return _Step(new_u, new_fu, memory, 1)


# Newton-Krylov: (I - df/du) step = f(u) - u by GMRES, halved until the residual falls.


def _newton_init(u, fu, controls):
    return ()


def _newton_step(f, u, fu, memory, active, controls):
    g = fu - u
    _, jacobian = jax.linearize(f, u)
    step, n_products = gmres(lambda v: v - jacobian(v), g, NEWTON_FORCING, active)
    size = jnp.sum(g**2, axis=1)

    def worse(fu_new, u_new):
        return active & ~(jnp.sum((fu_new - u_new) ** 2, axis=1) < size)

    def cond(carry):
        halvings, _, u_new, fu_new, _ = carry
        return (halvings < NEWTON_HALVINGS) & jnp.any(worse(fu_new, u_new))

    def body(carry):
        halvings, scale, u_new, fu_new, n_evals = carry
        again = worse(fu_new, u_new)
        scale = jnp.where(again, 0.5 * scale, scale)
        u_new = u + scale[:, None] * step
        return halvings + 1, scale, u_new, f(u_new), n_evals + again

    u_new = u + step
    start = (0, jnp.ones_like(size), u_new, f(u_new), n_products + 1)
    _, _, u_new, fu_new, n_evals = jax.lax.while_loop(cond, body, start)
    return _Step(u_new, fu_new, memory, n_evals)


# The neural ODE by Tsit5 (Tsitouras 2011; diffrax's tableau) with OrdinaryDiffEq's PI control.
#
# Near the steady state any step looks accurate, so a controller that only keeps the error below the
# ODE's tolerances lets the step grow past the method's stability limit, and the search hovers at
# that tolerance instead of converging. The error must therefore also stay below a share of du.

_TABLEAU = diffrax.Tsit5.tableau
_SAFETY, _MIN_FACTOR, _MAX_FACTOR = 0.9, 0.2, 10.0
_BETA1, _BETA2 = 7 / 50, 2 / 25
_FIRST_ERROR = 1e-4
_SHARE_OF_DU = 0.1


class _Tsit5(NamedTuple):
    dt: jax.Array  # (B,)
    last_error: jax.Array  # (B,)


def _tsit5_init(u, fu, controls):
    # Hairer, Norsett and Wanner II.4, with the field's Lipschitz constant taken as 1: the field is
    # f(u) - u, so it is of that order and the evaluation that would measure it is saved.
    d1 = _scaled_norm(fu - u, u, u, controls)
    dt = jax.lax.stop_gradient((0.01 / jnp.maximum(d1, 1e-10)) ** (1 / 5))
    return _Tsit5(dt, jnp.full_like(dt, _FIRST_ERROR))


def _tsit5_step(f, u, fu, memory, active, controls):
    dt = memory.dt[:, None]
    slopes = [fu - u]
    for row in _TABLEAU.a_lower[:-1]:
        stage = u + dt * _combine(row, slopes)
        slopes.append(f(stage) - stage)
    u_new = u + dt * _combine(_TABLEAU.a_lower[-1], slopes)
    fu_new = f(u_new)
    slopes.append(fu_new - u_new)
    error = dt * _combine(_TABLEAU.b_error, slopes)
    e = _scaled_norm(error, u, u_new, controls)
    e = jnp.maximum(e, _rms(error) / (_SHARE_OF_DU * _rms(slopes[0])))
    e = jax.lax.stop_gradient(e)
    e = jnp.where(jnp.isfinite(e), jnp.maximum(e, 1e-12), 1e12)
    accept = e <= 1
    slower = _SAFETY * e**-_BETA1
    factor = jnp.where(accept, slower * memory.last_error**_BETA2, slower)
    factor = jnp.clip(factor, _MIN_FACTOR, jnp.where(accept, _MAX_FACTOR, 1.0))
    factor = jnp.where(active, factor, 1.0)  # a sample that is done must not run off
    memory = _Tsit5(
        memory.dt * factor, jnp.where(accept, jnp.maximum(e, _FIRST_ERROR), memory.last_error)
    )
    keep = accept[:, None]
    return _Step(jnp.where(keep, u_new, u), jnp.where(keep, fu_new, fu), memory, 6)


def _combine(row, slopes):
    return sum(float(a) * k for a, k in zip(row, slopes, strict=True) if a != 0)


def _scaled_norm(v, u, u_new, controls):
    scale = controls.ode_abstol + controls.ode_reltol * jnp.maximum(jnp.abs(u), jnp.abs(u_new))
    return _rms(v / scale)


def _rms(v):
    return jnp.sqrt(jnp.mean(v**2, axis=1))


_SOLVERS = {
    "tsit5": (_tsit5_init, _tsit5_step),
    "anderson": (_anderson_init, _anderson_step),
    "newton": (_newton_init, _newton_step),
    "fixed_point": (_fixed_point_init, _fixed_point_step),
}
