"""Estimators of layers: every layer by value, gradients, certificates, files, what is refused."""

import dataclasses
import pickle
import warnings

import numpy as np
import pytest
from architecture_cases import MODELS, random_architecture
from helpers import (
    DIFFERENCE_TOLERANCE,
    STATE_TOLERANCE,
    assert_near,
    assert_params_equal,
    difference_quotient,
    inner,
    random_direction,
    random_params,
    tight,
)
from parity import LOSS_CURVE
from sklearn.base import clone

from pydeq import ConvergenceWarning, DEQClassifier, DEQRegressor, load
from pydeq.engines import get_engine
from pydeq.layers import Activation, Conv, Dense, Flatten, GroupNorm, MeanPool, Residual
from pydeq.model import OptimizerSpec, SolverSpec, certify
from pydeq.model.cell import acting_cell, linearize
from pydeq.model.forward import forward

pytestmark = pytest.mark.usefixtures("nothing_kept")

IMAGES = {
    "input_shape": (1, 6, 6),
    "encoder": [Conv(2, stride=2), Activation()],
    "cell": [Residual(Conv(2)), Activation("tanh"), Conv(2, padding="circular")],
    "decoder": [MeanPool(3), Flatten(), Dense(2)],
    "max_iter": 2,
    "random_state": 0,
    "engine": "jax",
}


def data(n=20):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 36))
    return X, (X[:, 0] > 0).astype(int)


def opened(model, params, solver=None, loss="squared_error"):
    engine = get_engine("jax", "cpu")
    return engine.open(model, solver or SolverSpec(), OptimizerSpec(loss=loss), params)


def samples(model, n=4, dtype="float64"):
    return np.random.default_rng(1).normal(size=(n, model.n_features)).astype(dtype)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float64") for name in MODELS), ("contractive", "float32")]
)
def test_layers_are_those_of_the_reference(name, dtype):
    model = MODELS[name]
    params = random_params(model, dtype=dtype, scale=2.0)
    x = samples(model, dtype=dtype)
    session = opened(model, params, SolverSpec("anderson"))
    u, fu = session.trajectory(x, 1)
    here = linearize(model, params, acting_cell(model, params), x, u)
    tolerance = STATE_TOLERANCE[dtype]
    assert_near(fu, here.value, tolerance)
    if dtype == "float64":
        found = session.equilibrium(x)
        state = found.state.reshape(-1, *model.network.state_shape)
        expected = forward(model.network.decoder, params, state)
        assert_near(found.output, expected, tolerance)
    session.close()


@pytest.mark.parametrize("name", MODELS)
def test_gradient_is_that_of_differences(name):
    model = MODELS[name]
    if model.stability == "jacobian":  # the penalty holds the state constant
        model = dataclasses.replace(model, stability="none")
    scale = 3.0 if model.stability == "contractive" else 0.3
    params = random_params(model, scale=scale)
    x, target = samples(model), np.random.default_rng(2).normal(size=(4, 3))
    weight = np.array([1.0, 2.0, 0.5, 1.0])
    solver = tight(name="anderson")

    def loss(values):
        session = opened(model, values, solver)
        return session.loss_and_grad(x, target, weight)[0]

    _, gradient = opened(model, params, solver).loss_and_grad(x, target, weight)
    direction = random_direction(params, 3)
    expected = difference_quotient(loss, params, direction)
    assert inner(gradient, direction) == pytest.approx(expected, rel=DIFFERENCE_TOLERANCE)
    assert all(np.abs(value).max() > 0 for value in gradient.values())


@pytest.mark.parametrize("name", MODELS)
def test_certificates(name):
    model = MODELS[name]
    params = random_params(model, scale=2.0 if model.stability == "contractive" else 0.3)
    x = samples(model)
    near = opened(model, params, SolverSpec("anderson", 1e-2, 1e-2)).equilibrium(x)
    exact = opened(model, params, tight(name="anderson")).equilibrium(x)
    assert exact.converged.all()
    certificates = certify(model, params, x, near).certificates
    here = linearize(model, params, acting_cell(model, params), x, near.state)
    # By central differences of the cell itself.
    for i, step in enumerate(1e-6 * np.eye(model.state_width)):
        ends = [
            linearize(model, params, here.cell, x, near.state + side * step).value
            for side in (1, -1)
        ]
        assert_near(here.jacobians()[:, i], (ends[0] - ends[1]) / 2e-6, 1e-6)
    tangent = np.random.default_rng(2).normal(size=near.state.shape)
    product = opened(model, params, SolverSpec()).jvp(x, near.state, tangent)
    assert_near(product, here.jvp(tangent), 1e-12)
    eigenvalues = np.linalg.eigvals(here.jacobians())
    assert_near(certificates.spectral_abscissa, eigenvalues.real.max(axis=1) - 1, 1e-12)
    distance = np.linalg.norm(near.state - exact.state, axis=1)
    if model.stability == "contractive":
        assert (distance <= certificates.distance_bound).all()
        assert np.isfinite(certificates.distance_bound).all()
        largest = np.linalg.svd(here.jacobians(), compute_uv=False).max()
        assert 0.1 < largest <= here.lipschitz <= 0.9
    elif "GroupNorm" in repr(model.cell):
        assert np.isinf(certificates.distance_bound).all()


@pytest.mark.parametrize(
    "how", [{}, {"adjoint": "unrolled", "solver": "fixed_point", "max_steps": 50}]
)
def test_fit_save_load_clone(how, tmp_path):
    X, y = data()
    model = DEQClassifier(**IMAGES, **how).fit(X, y)
    assert model.equilibrium(X).converged.all()
    assert model.history_[-1].n_failed == 0
    model.save(tmp_path / "model")
    same = load(tmp_path / "model")
    assert same.model_spec_ == model.model_spec_
    assert_params_equal(same.params_, model.params_)
    np.testing.assert_array_equal(same.predict_proba(X), model.predict_proba(X))
    assert same.partial_fit(X, y).n_iter_ == 3
    assert pickle.loads(pickle.dumps(model)).get_params() == model.get_params()
    assert clone(model).get_params() == model.get_params()
    assert "Residual" in repr(model)
    assert model.trajectory(X, 3).shape == (4, 20, 18)


def test_going_on_with_other_layers_is_refused():
    X, y = data()
    model = DEQClassifier(**IMAGES, warm_start=True).fit(X, y)
    with pytest.raises(ValueError, match=r"cell was .*Residual.* and is now"):
        model.set_params(cell=[Conv(2)]).fit(X, y)


def test_a_checkpoint_is_gone_on_with(tmp_path):
    X, y = data()
    short = DEQClassifier(**{**IMAGES, "max_iter": 3}).fit(X, y, checkpoint=tmp_path)
    again = DEQClassifier(**{**IMAGES, "max_iter": 3}).fit(X, y, checkpoint=tmp_path)
    assert_params_equal(again.params_, short.params_)
    with pytest.raises(ValueError, match="cell"):
        DEQClassifier(**{**IMAGES, "cell": [Conv(2)]}).fit(X, y, checkpoint=tmp_path)


def test_layers_may_replace_one_part_alone():
    X, y = data()
    small = {"max_iter": 1, "random_state": 0, "engine": "jax", "hidden_layer_sizes": 3}
    for stability, sizes in (("contractive", 3), ("monotone", ())):
        model = DEQClassifier(
            **{**small, "hidden_layer_sizes": sizes},
            stability=stability,
            input_shape=(1, 6, 6),
            encoder=[MeanPool(3), Flatten()],
        )
        assert model.fit(X, y).equilibrium(X, certify=True).state.shape == (20, 4)
    X = X[:, :4]
    regressor = DEQRegressor(**small, n_state=None, decoder=[Dense(1)]).fit(X, X[:, 0])
    assert regressor.params_.keys() >= {"cell.0.weight", "decoder.weight"}
    assert "encoder.weight" not in regressor.params_


def test_the_dense_default_written_as_layers_is_the_same_model():
    X, y = data()
    given = {"max_iter": 2, "random_state": 0, "engine": "jax", "n_state": 5}
    plain = DEQClassifier(**given, hidden_layer_sizes=4).fit(X, y)
    cell = [Dense(4), Activation("relu"), Dense(5)]
    layered = DEQClassifier(**given, encoder=[Dense(5)], cell=cell, decoder=[Dense(2)]).fit(X, y)
    assert_params_equal(layered.params_, plain.params_)


REFUSED = {
    "input_shape": [(1, 6, 5), (6, 6), 36, "image", (1, 6.0, 6), (True, 6, 6)],
    "encoder": [3, "Conv", [3], [Conv], [Dense(3)], [Conv(2, 7)]],
    "cell": [
        [],
        [Activation()],
        [Conv(3)],
        [Conv(2, stride=2)],
        [Dense(2)],
        [GroupNorm(3), Conv(2)],
        [Residual([Conv(3)]), Conv(2)],
    ],
    "decoder": [[], [Flatten()], [Flatten(), Dense(3)], [Dense(2)]],
}


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, values in REFUSED.items() for v in values]
)
def test_refused_with_the_name_of_what_does_not_fit(name, value):
    model = DEQClassifier(**{**IMAGES, name: value})
    with pytest.raises(ValueError, match=name):
        model.fit(*data())
    assert not hasattr(model, "params_")


def test_errors_name_the_layer_what_it_got_and_what_it_needs():
    message = r"cell\[0\]\.layers\[1\], Dense\(n_units=2\): it needs values in a row.*\(2, 3, 3\)"
    with pytest.raises(ValueError, match=message):
        DEQClassifier(**{**IMAGES, "cell": [Residual([Conv(2), Dense(2)])]}).fit(*data())
    with pytest.raises(ValueError, match=r"cell\[0\], GroupNorm.*contractive.*Lipschitz"):
        DEQClassifier(**{**IMAGES, "cell": [GroupNorm(1), Conv(2)]}).fit(*data())
    with pytest.raises(ValueError, match=r"monotone.*cell=None"):
        DEQClassifier(**IMAGES, stability="monotone", hidden_layer_sizes=()).fit(*data())
    with pytest.raises(ValueError, match=r"cell=None .* \(2, 3, 3\)\. End encoder with Flatten"):
        DEQClassifier(**{**IMAGES, "cell": None}).fit(*data())


@pytest.fixture
def n_architectures(request):
    return request.config.getoption("--fuzz") or 5


def failure(model, X, y):
    """Return what a fit says where it refuses; None: it ran."""
    try:
        model.fit(X, y)
    except ValueError as error:
        return str(error)
    return None


def random_model(seed, engine):
    rng = np.random.default_rng(seed)
    given = random_architecture(rng)
    stability = str(rng.choice(["none", "jacobian", "contractive"]))
    more = {"max_iter": 1, "random_state": 0, "solver": "fixed_point", "max_steps": 200}
    return DEQClassifier(**given, **more, stability=stability, engine=engine)


def check_saved(model, X, path):
    model.save(path)
    np.testing.assert_array_equal(load(path).predict_proba(X), model.predict_proba(X))


def test_random_architectures_are_refused_by_name_or_work(n_architectures, tmp_path):
    X, y = data()
    n_fitted = 0
    for seed in range(n_architectures):
        model = random_model(seed, "jax")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            if (error := failure(model, X, y)) is not None:
                assert any(part in error for part in ("encoder", "cell", "decoder")), error
                continue
            n_fitted += 1
            check_saved(model, X, tmp_path / "model")
    assert n_fitted > n_architectures / 3


@pytest.mark.julia
def test_random_architectures_train_alike_on_julia_and_jax(n_architectures, tmp_path):
    X, y = data()
    for seed in range(n_architectures):
        models = [random_model(seed, engine) for engine in ("julia", "jax")]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            errors = [failure(model, X, y) for model in models]
            assert errors[0] == errors[1], seed
            if errors[0] is not None:
                continue
            losses = [model.history_[-1].loss for model in models]
            np.testing.assert_allclose(*losses, rtol=LOSS_CURVE, err_msg=str(seed))
            check_saved(models[0], X, tmp_path / "model")
