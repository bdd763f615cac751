"""What the tests of the estimators share: small models and data, and an engine that is cut off."""

import numpy as np
import oracle
import pytest

from pydeq import DEQClassifier, DEQRegressor

SMALL = {
    "n_state": 6,
    "hidden_layer_sizes": 8,
    "learning_rate_init": 0.01,
    "max_iter": 5,
    "average": False,
    "random_state": 0,
}
BOTH = [DEQRegressor, DEQClassifier]


def make_data(cls, n=40, n_features=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, n_features))
    y = np.sin(X[:, 0]) + X[:, 1]
    return X, y if cls is DEQRegressor else np.array(["no", "yes"])[(y > 0).astype(int)]


class StubbornEngine(oracle.OracleEngine):
    """An oracle whose epochs are cut off by Ctrl-C after `n_epochs`."""

    n_epochs = 0

    def open(self, *args, **kwargs):
        session = super().open(*args, **kwargs)
        epoch, train_epoch = 0, session.train_epoch

        def interrupted(order, batch_size, on_batch=None):
            nonlocal epoch
            epoch += 1
            if epoch > self.n_epochs:
                raise KeyboardInterrupt
            return train_epoch(order, batch_size, on_batch)

        session.train_epoch = interrupted
        return session


def interrupted_fit(use_engine, model, X, y, n_epochs, **fit):
    """Fit with Ctrl-C after `n_epochs`; return the warning."""
    engine = StubbornEngine()
    engine.n_epochs = n_epochs
    use_engine(engine)
    with pytest.warns(UserWarning, match="was interrupted") as caught:
        model.fit(X, y, **fit)
    use_engine(oracle.OracleEngine())
    assert len(caught) == 1
    return str(caught[0].message)
