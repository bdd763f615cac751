"""Twenty epochs, five seeds: pydeq's default classifier, and the plain cell beside it."""

import time
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from pydeq import DEQClassifier

__all__ = ["Outcome", "outcomes"]

_PLAIN = {
    "n_state": 100,
    "hidden_layer_sizes": (500,),
    "activation": "tanh",
    "stability": "none",
    "solver": "fixed_point",
    "alpha": 0.0,
    "learning_rate_init": 1e-3,
    "batch_size": 128,
    "average": False,
    "max_steps": 300,
}
CASES = {"DEQClassifier()": {}, "plain cell, fixed_point": _PLAIN}


class Outcome(NamedTuple):
    """What one fit came to."""

    what: str
    epochs: int
    stop_reason: str
    n_failed: int
    not_converged: int
    n_test: int
    worst: float
    accuracy: float
    evals_first: float
    evals_last: float
    seconds: float

    @property
    def stable(self) -> bool:
        """Nothing failed, nothing diverged, every test sample converged."""
        return self.stop_reason == "max_iter" and self.not_converged == 0 and self.n_failed == 0


def outcomes(data, epochs: int, seeds: int) -> Iterator[Outcome]:
    """Yield what each fit of each case came to; it ends early only where it has to."""
    x, y, x_test, y_test = data
    for name, settings in CASES.items():
        for seed in range(seeds):
            model = DEQClassifier(
                **settings, max_iter=epochs, n_iter_no_change=np.inf, random_state=seed
            )
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                found = model.fit(x, y).equilibrium(x_test)
            history = model.history_
            yield Outcome(
                what=f"{name}, seed {seed}",
                epochs=len(history),
                stop_reason=history.stop_reason,
                n_failed=sum(history.n_failed),
                not_converged=int((~found.converged).sum()),
                n_test=len(x_test),
                worst=float(found.residual.max()),
                accuracy=float((model.classes_[found.output.argmax(axis=1)] == y_test).mean()),
                evals_first=history.n_evals[0],
                evals_last=history.n_evals[-1],
                seconds=time.perf_counter() - start,
            )
