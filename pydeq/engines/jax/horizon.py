"""The neural ODE du/dt = f(u, h) - u integrated to a finite time, differentiably, by diffrax."""

import jax
import jax.numpy as jnp

from pydeq.engines.jax.solvers import Controls, Field, Solution

__all__ = ["integrate"]


def integrate(
    field: Field,
    u0: jax.Array,
    h: jax.Array,
    active: jax.Array,
    controls: Controls,
    max_steps: int,
) -> Solution:
    """Return u(T), T the horizon, from u(0) = u0, each sample with steps of its own.

    Gradients go through the integration (diffrax's checkpointed discretise-then-optimise).
    ``converged`` says that the integration reached the horizon within `max_steps` (static).
    """
    import diffrax  # takes long to load, and few need it

    controller = diffrax.PIDController(
        rtol=controls.ode_reltol, atol=controls.ode_abstol, pcoeff=0.4, icoeff=0.3
    )

    def one(
        u0: jax.Array, h: jax.Array, active: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        end = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, u, h: field(u, h) - u),
            diffrax.Tsit5(),
            t0=0.0,
            t1=jnp.where(active, controls.horizon, 0.0),  # padding is there already
            dt0=None,
            y0=u0,
            args=h,
            stepsize_controller=controller,
            max_steps=max_steps,
            throw=False,
        )
        assert end.ys is not None  # SaveAt(t1=True) is the default
        return end.ys[-1], 6 * end.stats["num_steps"], end.result == diffrax.RESULTS.successful

    u, n_evals, reached = jax.vmap(one)(u0, h, active)
    finite = jnp.all(jnp.isfinite(u), axis=1)
    # The choice of the first step (2), the first slope, the residual's f, and u(0) if it is f's.
    others = 5 if field.model.init == "cell" else 4
    n_evals = jnp.where(active, n_evals + others, 0)
    return Solution(u, field(u, h), n_evals, reached & finite)
