"""The embedded engine: JAX for the arrays, diffrax for the neural ODE, optax for the optimisers."""
