"""What the tests of checkpoints share: a small fit, and a power cut in it."""

import numpy as np
import oracle
from helpers import assert_params_equal

from pydeq import DEQClassifier, DEQRegressor

SMALL = {
    "n_state": 3,
    "hidden_layer_sizes": 4,
    "max_iter": 6,
    "batch_size": 8,
    "tol": 0.0,
    "random_state": 0,
}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
Y = {DEQRegressor: X[:, 0] - X[:, 1] ** 2, DEQClassifier: np.array(["a", "b"])[np.arange(40) % 2]}
BOTH = [DEQRegressor, DEQClassifier]


class PowerCut(BaseException):
    """Nothing catches it."""


def cut_off(monkeypatch, epoch, error=PowerCut):
    """Make the epoch with this index fail after half of it, in every session."""
    train_epoch = oracle.OracleSession.train_epoch

    def cut(session, order, batch_size, on_batch=None):
        if session._epoch == epoch:
            session._train_epoch(order[: len(order) // 2], batch_size, None)
            raise error
        return train_epoch(session, order, batch_size, on_batch)

    monkeypatch.setattr(oracle.OracleSession, "train_epoch", cut)


def assert_same_fit(found, expected):
    assert_params_equal(found.params_, expected.params_)
    assert_params_equal(found.optimizer_state_, expected.optimizer_state_)
    assert found.loss_curve_ == expected.loss_curve_
    assert found.history_.stop_reason == expected.history_.stop_reason
    assert found._rng.bit_generator.state == expected._rng.bit_generator.state
    assert found._seed == expected._seed


def names(folder):
    return sorted(int(path.stem.removeprefix("epoch-")) for path in folder.glob("*.safetensors"))
