"""The embedded engine: JAX for the arrays, diffrax for the neural ODE, optax for the optimiser."""

from pydeq.engines.jax.session import JaxEngine

__all__ = ["JaxEngine"]
