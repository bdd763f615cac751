"""Read handwritten digits, look at how the answers were found, and keep the model in a file."""

from pathlib import Path

import pydeq
from pydeq import DEQClassifier, plot
from pydeq.datasets import load_digits

X_train, y_train, X_test, y_test = load_digits()
model = DEQClassifier(max_iter=30, random_state=0)
model.fit(X_train, y_train)
print(f"test accuracy: {model.score(X_test, y_test):.4f}")

found = model.equilibrium(X_test)
print(f"converged: {found.converged.sum()} of {len(y_test)} test samples")
print(f"largest residual: {found.residual.max():.1e}")

Path("out").mkdir(exist_ok=True)
model.save("out/digits.safetensors")
same = pydeq.load("out/digits.safetensors")
prediction, proba = same.predict(X_test[:1])[0], same.predict_proba(X_test[:1])[0]
print(f"prediction: {prediction} / true digit: {y_test[0]}")

plot.digit(X_test[0], prediction, y_test[0], proba).figure.savefig("out/digits.png", dpi=120)
plot.feature_clusters(found.state, y_test).figure.savefig("out/clusters.png", dpi=120)
print("figures: out/digits.png, out/clusters.png")
