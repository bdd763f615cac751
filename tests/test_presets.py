"""The presets against the numbers of the post that they reproduce.

Q. Wei, F. Schäfer, A. Pal, C. Rackauckas, "Composability in Julia: Implementing Deep Equilibrium
Models via Neural ODEs", https://julialang.org/blog/2021/10/DEQ/ (source:
https://github.com/JuliaLang/www.julialang.org/blob/main/blog/2021/10/DEQ.md). What is quoted below
is from its two programs, "a simple DEQ Model" and "DEQ for learning MNIST from scratch".
"""

import math

import numpy as np
import pytest

from pydeq import DEQClassifier, DEQRegressor, presets
from pydeq.errors import ConvergenceWarning
from pydeq.estimators.parameters import fit_specs
from pydeq.training import start_fit

# In the post's words, and in pydeq's parameters. In both, `Chain` leaves the cell as it is.
DOUBLE = {
    "Chain(Dense(1, 5), Dense(5, 1))": {
        "n_state": None,
        "hidden_layer_sizes": (5,),
        "activation": "identity",
        "stability": "none",
        "horizon": None,
    },
    "DynamicSS(Tsit5(), abstol = 1f-2, reltol = 1f-2)": {
        "solver": "tsit5",
        "adjoint": "implicit",
        "abstol": 0.01,
        "reltol": 0.01,
    },
    "ADAM(0.05)": {"learning_rate_init": 0.05, "alpha": 0},
    # One batch of all ten points, in their order, an epoch; every epoch is run.
    "epochs = 1000": {
        "max_iter": 1000,
        "batch_size": 10,
        "shuffle": False,
        "n_iter_no_change": math.inf,
        "early_stopping": False,
        "average": False,
    },
}
MNIST = {
    "Dense(784, 100)": {"n_state": 100},
    "Chain(Dense(100, 500, tanh), Dense(500, 100))": {
        "hidden_layer_sizes": (500,),
        "activation": "tanh",
        "stability": "none",
        "horizon": None,
    },
    "DynamicSS(Tsit5(), abstol = 1f-1, reltol = 1f-1)": {
        "solver": "tsit5",
        "adjoint": "implicit",
        "abstol": 0.1,
        "reltol": 0.1,
    },
    "Flux.params(model)": {"train_encoder": True},
    "ADAM(args.η), η = 3e-4, λ = 0": {"learning_rate_init": 0.0003, "alpha": 0},
    "train(batchsize = 128, epochs = 1)": {
        "batch_size": 128,
        "max_iter": 1,
        "early_stopping": False,
        "average": False,
    },
    "DataLoader(..., shuffle=true)": {"shuffle": True},
}
# Flux's Dense: `weight (n_out, n_in)`, here (n_in, n_out).
DOUBLE_WEIGHTS = {"cell.0": (1, 5), "cell.1": (5, 1)}
MNIST_WEIGHTS = {
    "encoder": (784, 100),
    "cell.0": (100, 500),
    "cell.1": (500, 100),
    "decoder": (100, 10),
}


@pytest.mark.parametrize(
    ("preset", "said", "parameters"),
    [
        pytest.param(preset, said, parameters, id=f"{preset.__name__}: {said}")
        for preset, post in ((presets.double, DOUBLE), (presets.mnist, MNIST))
        for said, parameters in post.items()
    ],
)
def test_is_set_as_in_the_post(preset, said, parameters):
    found = preset().get_params()
    assert {name: found[name] for name in parameters} == parameters


@pytest.mark.parametrize(
    ("preset", "kind", "loss", "n_features", "n_outputs", "weights"),
    [
        (presets.double, DEQRegressor, "squared_error", 1, 1, DOUBLE_WEIGHTS),
        (presets.mnist, DEQClassifier, "log_loss", 784, 10, MNIST_WEIGHTS),
    ],
)
def test_has_the_posts_layers_and_starts_as_flux_does(
    preset, kind, loss, n_features, n_outputs, weights
):
    model = preset()
    assert type(model) is kind
    specs = fit_specs(model.get_params(), loss, 20, n_features, n_outputs)
    params = start_fit(specs.model, model.random_state, np.dtype("f8")).params
    assert params.keys() == {f"{n}.{part}" for n in weights for part in ("weight", "bias")}
    for name, shape in weights.items():
        weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
        assert (weight.shape, bias.shape) == (shape, shape[1:])
        assert not bias.any()
        bound = np.sqrt(6 / sum(shape))  # of glorot_uniform; of five numbers none may be near it
        assert 0.4 * bound < np.abs(weight).max() <= bound


def test_mnist_conv_is_a_contractive_model_of_images():
    specs = fit_specs(presets.mnist_conv(max_iter=3).get_params(), "log_loss", 60_000, 784, 10)
    assert specs.model.network.state_shape == (32, 7, 7)
    assert specs.model.stability == "contractive"
    assert (specs.training.max_iter, specs.training.batch_size) == (3, 100)


def test_mnist_multiscale_is_a_contractive_model_of_two_resolutions():
    specs = fit_specs(presets.mnist_multiscale().get_params(), "log_loss", 60_000, 784, 10)
    assert specs.model.network.state_shape == ((32, 7, 7), (48, 4, 4))
    assert specs.model.stability == "contractive"


@pytest.mark.parametrize("preset", [presets.double, presets.mnist])
def test_starts_alike_on_every_run(preset):
    assert isinstance(preset().random_state, int)


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
