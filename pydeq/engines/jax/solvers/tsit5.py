"""The neural ODE du/dt = f(u) - u by Tsit5, until it is steady."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pydeq.engines.jax.solvers.base import Controls, Field, Solver, Step

__all__ = ["tsit5"]

_SAFETY, _MIN_FACTOR, _MAX_FACTOR = 0.9, 0.2, 10.0
_BETA1, _BETA2 = 7 / 50, 2 / 25
_FIRST_ERROR = 1e-4
_SHARE_OF_DU = 0.1


def tsit5(field: Field, controls: Controls) -> Solver:
    """Tsitouras 2011 (diffrax's tableau) with OrdinaryDiffEq's PI control, step by step a sample.

    Near the steady state any step looks accurate, so a controller that only keeps the error below
    the ODE's tolerances lets the step grow past the method's stability limit, and the search hovers
    at that tolerance instead of converging. The error must therefore also stay below a share of du.
    """
    import diffrax  # takes long to load; a program that is kept does without

    tableau = diffrax.Tsit5.tableau
    stages = tuple(tuple(float(a) for a in row) for row in tableau.a_lower)
    error = tuple(float(b) for b in tableau.b_error)
    return Solver(partial(_init, controls), partial(_step, field, controls, stages, error))


class _Memory(NamedTuple):
    dt: jax.Array  # (B,)
    last_error: jax.Array  # (B,)


def _init(controls: Controls, u: jax.Array, fu: jax.Array, h: jax.Array) -> _Memory:
    # Hairer, Norsett and Wanner II.4, with the field's Lipschitz constant taken as 1: the field is
    # f(u) - u, so it is of that order and the evaluation that would measure it is saved.
    d1 = _scaled_norm(fu - u, u, u, controls)
    dt = jax.lax.stop_gradient((0.01 / jnp.maximum(d1, 1e-10)) ** (1 / 5))
    return _Memory(dt, jnp.full_like(dt, _FIRST_ERROR))


def _step(
    field: Field,
    controls: Controls,
    stages: tuple[tuple[float, ...], ...],
    b_error: tuple[float, ...],
    u: jax.Array,
    fu: jax.Array,
    h: jax.Array,
    memory: _Memory,
    active: jax.Array,
) -> Step:
    dt = memory.dt[:, None]
    slopes = [fu - u]
    for row in stages[:-1]:
        stage = u + dt * _combine(row, slopes)
        slopes.append(field(stage, h) - stage)
    u_new = u + dt * _combine(stages[-1], slopes)
    fu_new = field(u_new, h)
    slopes.append(fu_new - u_new)
    error = dt * _combine(b_error, slopes)
    e = _scaled_norm(error, u, u_new, controls)
    e = jnp.maximum(e, _rms(error) / (_SHARE_OF_DU * _rms(slopes[0])))
    e = jax.lax.stop_gradient(e)
    e = jnp.where(jnp.isfinite(e), jnp.maximum(e, 1e-12), 1e12)
    accept = e <= 1
    slower = _SAFETY * e**-_BETA1
    factor = jnp.where(accept, slower * memory.last_error**_BETA2, slower)
    factor = jnp.clip(factor, _MIN_FACTOR, jnp.where(accept, _MAX_FACTOR, 1.0))
    factor = jnp.where(active, factor, 1.0)  # a sample that is done must not run off
    memory = _Memory(
        memory.dt * factor, jnp.where(accept, jnp.maximum(e, _FIRST_ERROR), memory.last_error)
    )
    keep = accept[:, None]
    return Step(jnp.where(keep, u_new, u), jnp.where(keep, fu_new, fu), memory, 6)


def _combine(row: tuple[float, ...], slopes: list[jax.Array]) -> jax.Array:
    first, *others = (a * k for a, k in zip(row, slopes, strict=True) if a != 0)
    return sum(others, first)


def _scaled_norm(v: jax.Array, u: jax.Array, u_new: jax.Array, controls: Controls) -> jax.Array:
    scale = controls.ode_abstol + controls.ode_reltol * jnp.maximum(jnp.abs(u), jnp.abs(u_new))
    return _rms(v / scale)


def _rms(v: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(v**2, axis=1))
