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
from pydeq.engines.jax.solvers import Controls, Solution, solve

__all__ = ["find_equilibrium", "jacobian_estimate", "steady_state"]

LOOSEST_ADJOINT = 1e-3
"""The adjoint is solved to the forward tolerance, but never more loosely than this."""


def find_equilibrium(
    solver: str,
    activation: str,
    layers: Layers,
    h: jax.Array,
    active: jax.Array,
    controls: Controls,
    unroll: int | None = None,
) -> Solution:
    """Search the steady state of du/dt = f(u, h) - u from u(0) = f(0, h), see `solve`."""
    return solve(
        solver,
        lambda u: cell(activation, layers, u + h),
        cell(activation, layers, h),
        active,
        controls,
        unroll,
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def steady_state(
    solver: str,
    adjoint: str,
    activation: str,
    layers: Layers,
    h: jax.Array,
    active: jax.Array,
    controls: Controls,
) -> Solution:
    """Return the steady state; gradients reach `layers` and `h` through its `u` alone.

    Samples that did not converge give no gradient.
    """
    return find_equilibrium(solver, activation, layers, h, active, controls)


def _forward(solver, adjoint, activation, layers, h, active, controls):
    solution = find_equilibrium(solver, activation, layers, h, active, controls)
    return solution, (layers, h, solution.u, active & solution.converged, controls)


def _backward(solver, adjoint, activation, residuals, cotangent):
    layers, h, u, valid, controls = residuals
    # 0 * nan is nan: states that are not finite must not meet the zero gradient they get.
    v = jnp.where(valid[:, None], u + h, 0)
    g = jnp.where(valid[:, None], cotangent.u, 0)
    _, pullback = jax.vjp(lambda layers, v: cell(activation, layers, v), layers, v)
    if adjoint == "implicit":
        _, pullback_v = jax.vjp(lambda v: cell(activation, layers, v), v)
        rtol = jnp.minimum(jnp.maximum(controls.reltol, controls.abstol), LOOSEST_ADJOINT)
        g, _ = gmres(lambda x: x - pullback_v(x)[0], g, rtol, valid)
    to_layers, to_v = pullback(g)
    return to_layers, to_v, None, None


steady_state.defvjp(_forward, _backward)


def jacobian_estimate(activation: str, layers: Layers, v: jax.Array, probe: jax.Array) -> jax.Array:
    """Return ``||probe^T df/dz||_2^2`` per sample ``(n,)``: Hutchinson's ||df/dz||_F^2.

    Parameters
    ----------
    v : jax.Array (n, n_state)
        z* + h; hold z* constant for the penalty of Bai et al. 2021.
    probe : jax.Array (n_state,)
        Entries of mean 0 and variance 1.
    """
    _, pullback = jax.vjp(lambda v: cell(activation, layers, v), v)
    (row,) = pullback(jnp.broadcast_to(probe, v.shape))
    return jnp.sum(row**2, axis=1)
