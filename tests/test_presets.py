import math

import numpy as np
import pytest

from pydeq import DEQClassifier, DEQRegressor, presets
from pydeq.errors import ConvergenceWarning

# The design's table, section 2, and the posts' code.
DOUBLE = {
    "n_state": None,
    "hidden_layer_sizes": (5,),
    "activation": "identity",
    "stability": "none",
    "solver": "tsit5",
    "abstol": 1e-2,
    "reltol": 1e-2,
    "learning_rate_init": 0.05,
    "alpha": 0,
    "batch_size": 10,
    "max_iter": 1000,
    "shuffle": False,
    "n_iter_no_change": math.inf,
    "average": False,
}
MNIST = {
    "n_state": 100,
    "hidden_layer_sizes": (500,),
    "activation": "tanh",
    "stability": "none",
    "train_encoder": True,
    "solver": "tsit5",
    "abstol": 1e-1,
    "reltol": 1e-1,
    "learning_rate_init": 3e-4,
    "alpha": 0,
    "batch_size": 128,
    "max_iter": 1,
    "average": False,
}


@pytest.mark.parametrize(
    ("preset", "kind", "table"),
    [(presets.double, DEQRegressor, DOUBLE), (presets.mnist, DEQClassifier, MNIST)],
)
def test_is_the_posts_model(preset, kind, table):
    model = preset()
    assert type(model) is kind
    params = model.get_params()
    assert {name: params[name] for name in table} == table
    assert isinstance(model.random_state, int)


def test_overrides():
    assert presets.double(max_iter=3, random_state=7).get_params() == {
        **presets.double().get_params(),
        "max_iter": 3,
        "random_state": 7,
    }
    assert presets.mnist(train_encoder=False).train_encoder is False
    with pytest.raises(TypeError, match="no_such"):
        presets.double(no_such=1)


def test_double_data():
    X, y = presets.double_data()
    assert X.dtype == y.dtype == np.float64
    np.testing.assert_array_equal(X, [[k] for k in range(1, 11)])
    np.testing.assert_array_equal(y, 2 * X[:, 0])


@pytest.mark.parametrize(
    ("settings", "error"), [({}, 0.2), ({"abstol": 1e-6, "reltol": 1e-6}, 0.05)]
)
def test_double_doubles(settings, error):
    model = presets.double(**settings).fit(*presets.double_data())
    found = model.equilibrium([[-5.0]])
    assert found.converged.all()
    assert abs(found.output[0, 0] + 10) <= error
    assert model.n_iter_ == 1000, "all epochs ran"
    # y = 2x is a slope of 2/3: z = (a x + b) / (1 - a).
    slope = (model.params_["cell.0.weight"] @ model.params_["cell.1.weight"]).item()
    assert slope == pytest.approx(2 / 3, abs=0.02)


def test_double_without_an_equilibrium_ends_and_says_so():
    with pytest.warns(ConvergenceWarning, match="10 of 10 samples .*stability='contractive'"):
        model = presets.double(random_state=10).fit(*presets.double_data())
    assert model.history_.stop_reason == "no_equilibrium"
