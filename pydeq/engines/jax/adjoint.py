"""The steady state as a differentiable function of the cell's weights and of h.

The implicit function theorem needs only the answer, so one adjoint serves every solver: with
lambda = (I - df/dz)^-T dL/dz* at z* = f(z*, h), the gradients are lambda^T df/dtheta and
lambda^T df/dh (Bai et al. 2019, theorem 1). ``jfb`` takes lambda = dL/dz* (Fung et al. 2022).
"""

from functools import partial

import jax
import jax.numpy as jnp

from pydeq.engines.jax.cell import Layers, cell
from pydeq.engines.jax.gmres import gmres
from pydeq.engines.jax.solvers import Controls, Field, Solution, solve
from pydeq.model import ModelSpec

__all__ = ["find_equilibrium", "jacobian_estimate", "steady_state"]

ADJOINT_SHARE, LOOSEST_ADJOINT = 10, 1e-2
"""The adjoint is solved to so many times the forward tolerance, but never more loosely than this.

A gradient that is 1 % off is nothing beside what a batch's is off from that of all the data.
"""


def find_equilibrium(
    solver: str,
    model: ModelSpec,
    layers: Layers,
    h: jax.Array,
    active: jax.Array,
    controls: Controls,
    unroll: int | None = None,
) -> Solution:
    """Search the steady state of du/dt = f(u, h) - u from u(0) = f(0, h)."""
    field = Field(model, layers)
    u0 = field(jnp.zeros_like(h), h)
    return solve(solver, field, h, u0, jnp.ones(len(h), jnp.int32), active, controls, unroll)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def steady_state(
    solver: str,
    adjoint: str,
    model: ModelSpec,
    layers: Layers,
    h: jax.Array,
    active: jax.Array,
    controls: Controls,
) -> Solution:
    """Return the steady state; gradients reach `layers` and `h` through its `u` alone.

    Samples that did not converge give no gradient.
    """
    return find_equilibrium(solver, model, layers, h, active, controls)


def _forward(solver, adjoint, model, layers, h, active, controls):
    solution = find_equilibrium(solver, model, layers, h, active, controls)
    return solution, (layers, h, solution.u, active & solution.converged, controls)


def _backward(solver, adjoint, model, residuals, cotangent):
    layers, h, u, valid, controls = residuals
    # 0 * nan is nan: states that are not finite must not meet the zero gradient they get.
    u, h, g = (jnp.where(valid[:, None], a, 0) for a in (u, h, cotangent.u))
    if adjoint == "implicit":
        _, pullback_u = jax.vjp(lambda u: cell(model, layers, u, h), u)
        forward = jnp.maximum(controls.reltol, controls.abstol)
        rtol = jnp.minimum(ADJOINT_SHARE * forward, LOOSEST_ADJOINT)
        g, _ = gmres(lambda x: x - pullback_u(x)[0], g, rtol, valid)
    _, pullback = jax.vjp(lambda layers, h: cell(model, layers, u, h), layers, h)
    to_layers, to_h = pullback(g)
    return to_layers, to_h, None, None


steady_state.defvjp(_forward, _backward)


def jacobian_estimate(
    model: ModelSpec, layers: Layers, z: jax.Array, h: jax.Array, probe: jax.Array
) -> jax.Array:
    """Return ``||probe^T df/dz||_2^2`` per sample ``(n,)``: Hutchinson's ||df/dz||_F^2.

    Parameters
    ----------
    z, h : jax.Array (n, n_state)
        Hold z constant for the penalty of Bai et al. 2021.
    probe : jax.Array (n_state,)
        Entries of mean 0 and variance 1.
    """
    _, pullback = jax.vjp(lambda z: cell(model, layers, z, h), z)
    (row,) = pullback(jnp.broadcast_to(probe, z.shape))
    return jnp.sum(row**2, axis=1)
