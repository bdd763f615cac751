"""The embedded engine: JAX for the arrays, diffrax for the neural ODE."""

from pydeq.engines.jax.cache import describe as describe_cache
from pydeq.engines.jax.engine import JaxEngine
from pydeq.engines.jax.parallel import JaxGroup

__all__ = ["JaxEngine", "JaxGroup", "describe_cache"]
