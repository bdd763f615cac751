"""Train a plain cell until it loses its equilibrium, beside cells that are kept from it."""

import warnings
from pathlib import Path

from pydeq import ConvergenceWarning, DEQClassifier, plot
from pydeq.datasets import load_digits

X, y, X_test, y_test = load_digits()
settings = {
    "n_state": 64,
    "activation": "tanh",
    "solver": "fixed_point",  # settles where the cell does, and only there
    "max_steps": 300,
    "learning_rate_init": 3e-3,
    "max_iter": 5,
    "average": False,
    "random_state": 0,
}
models = {}
for stability in ("none", "jacobian", "contractive"):
    model = DEQClassifier(stability=stability, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted below
        models[stability] = model.fit(X, y)
        found = model.equilibrium(X_test)
    print(
        f"{stability}: {found.converged.sum()} of {len(y_test)} test samples converged, "
        f"{found.n_evals.mean():.1f} evaluations each"
    )

Path("out").mkdir(exist_ok=True)
plot.history_curves(models, "n_evals").figure.savefig("out/evaluations.png", dpi=120)
plot.history_curves(models, "worst_residual").figure.savefig("out/residual.png", dpi=120)
print("figures: out/evaluations.png, out/residual.png")
