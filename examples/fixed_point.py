"""Find fixed points by plain iteration: the idea of a deep equilibrium model without a network."""

from pathlib import Path

import numpy as np

from pydeq import fixed_point, plot

result = fixed_point(np.cos, -1.0)
print(f"cos x = x at {result.value:.6f}, after {result.n_evals} evaluations")
print(f"each step is {result.contraction_rate:.3f} times the one before")

# The same for a vector: the steady state of a small affine map, which is a linear system.
A = np.array([[0.5, 0.2], [-0.1, 0.4]])
b = np.array([1.0, 2.0])
steady = fixed_point(lambda z: A @ z + b, np.zeros(2))
print(f"z = A z + b at {steady.value}; solved directly: {np.linalg.solve(np.eye(2) - A, b)}")

Path("out").mkdir(exist_ok=True)
plot.cobweb(np.cos, result).figure.savefig("out/cobweb.png", dpi=120)
print("figure: out/cobweb.png")
