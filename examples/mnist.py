"""Read MNIST with the blog post's model; without MNIST, the digits that come with scikit-learn."""

import os
from pathlib import Path

import numpy as np

from pydeq import plot, presets
from pydeq.datasets import load_digits, load_mnist

try:
    X, y, X_test, y_test = load_mnist(os.environ.get("PYDEQ_DATA", "data"))
except FileNotFoundError as error:
    print(f"Going on with scikit-learn's 8 x 8 digits. {error}")
    X, y, X_test, y_test = load_digits()

if os.environ.get("PYDEQ_FAST") == "1":
    X, y, X_test, y_test = X[:2000], y[:2000], X_test[:1000], y_test[:1000]

# At 1e-3 instead of the post's 1e-1, where the plain cell may lose its equilibrium.
model = presets.mnist(abstol=1e-3, reltol=1e-3).fit(X, y)

found = model.equilibrium(X_test)
prediction = model.classes_[found.output.argmax(axis=1)]
print(f"test accuracy: {np.mean(prediction == y_test):.4f}")
print(f"converged: {found.converged.sum()} of {len(y_test)} test samples")

Path("out").mkdir(exist_ok=True)
wrong = prediction != y_test
mistakes = plot.digit_grid(X_test[wrong], prediction[wrong], y_test[wrong])
mistakes.figure.savefig("out/mistakes.png", dpi=120)
clusters = plot.feature_clusters(found.state[:1000], y_test[:1000])
clusters.figure.savefig("out/clusters.png", dpi=120)
print("figures: out/mistakes.png, out/clusters.png")
