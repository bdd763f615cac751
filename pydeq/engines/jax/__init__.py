"""The embedded engine: JAX for the arrays, diffrax for the neural ODE."""

from pydeq.engines.jax.cache import describe as describe_cache
from pydeq.engines.jax.session import JaxEngine

__all__ = ["JaxEngine", "describe_cache"]
