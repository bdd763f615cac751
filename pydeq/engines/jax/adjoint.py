"""Gradients at a steady state, by the implicit function theorem.

The theorem needs only the answer, so one adjoint serves every solver: with
lambda = (I - df/dz)^-T dL/dz* at z* = f(z*, h), the gradients are lambda^T df/dtheta and
lambda^T df/dh (Bai et al. 2019, theorem 1). ``jfb`` takes lambda = dL/dz* (Fung et al. 2022).
"""

import jax
import jax.numpy as jnp

from pydeq.engines.jax.krylov import solve_linear
from pydeq.engines.jax.solvers import Controls, Field

__all__ = ["jacobian_estimate", "solve_adjoint"]

ADJOINT_SHARE, LOOSEST_ADJOINT = 10, 1e-2
"""The adjoint is solved to so many times the forward tolerance, but never more loosely than this.

A gradient that is 1 % off is nothing beside what a batch's is off from that of all the data.
"""


def solve_adjoint(
    field: Field,
    u: jax.Array,
    h: jax.Array,
    g: jax.Array,
    valid: jax.Array,
    controls: Controls,
) -> jax.Array:
    """Return lambda ``(B, n_state)`` with (I - df/du)^T lambda = g; 0 where not `valid`."""
    _, pullback = jax.vjp(lambda u: field(u, h), u)
    forward = jnp.maximum(controls.reltol, controls.abstol)
    rtol = jnp.minimum(ADJOINT_SHARE * forward, LOOSEST_ADJOINT)
    solution, _ = solve_linear(lambda x: x - pullback(x)[0], g, rtol, valid)
    return solution


def jacobian_estimate(field: Field, z: jax.Array, h: jax.Array, probe: jax.Array) -> jax.Array:
    """Return ``||probe^T df/dz||_2^2`` per sample ``(n,)``: Hutchinson's ||df/dz||_F^2.

    Parameters
    ----------
    field : Field
    z, h : jax.Array (n, n_state)
        Hold z constant for the penalty of Bai et al. 2021.
    probe : jax.Array (n_state,)
        Entries of mean 0 and variance 1.
    """
    _, pullback = jax.vjp(lambda z: field(z, h), z)
    (row,) = pullback(jnp.broadcast_to(probe, z.shape))
    return jnp.sum(row**2, axis=1)
