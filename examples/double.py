"""Learn y = 2x as the steady state of a neural ODE, the blog post's first example."""

from pathlib import Path

import numpy as np

from pydeq import plot, presets

X, y = presets.double_data()  # x = 1 ... 10
model = presets.double().fit(X, y)

found = model.equilibrium([[-5.0]])
print(f"prediction for -5: {found.output[0, 0]:.4f} (converged: {found.converged[0]})")

X_wide = np.arange(-10.0, 11.0)[:, np.newaxis]
ax = plot.prediction_vs_truth(2 * X_wide[:, 0], model.predict(X_wide))
Path("out").mkdir(exist_ok=True)
ax.figure.savefig("out/double.png", dpi=120)
print("figure: out/double.png")
