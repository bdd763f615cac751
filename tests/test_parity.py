"""The engines against each other, by value: equilibria, gradients, loss curves, trained weights.

Where there is no Julia, JAX is compared with results that Julia gave, kept in ``data/``.
"""

import json
from pathlib import Path

import numpy as np
import parity
import pytest
from helpers import assert_near, assert_params_near

from pydeq.engines import get_engine
from pydeq.model import ODE_METHODS, SolverSpec

pytestmark = pytest.mark.usefixtures("nothing_kept")

REFERENCE = Path(__file__).parent / "data" / "julia_reference.npz"


@pytest.fixture(scope="module")
def jax_training():
    return parity.train(get_engine("jax", "cpu"))


N_SOME = 10
"""Steps of the training that are enough where all of them are not needed."""


@pytest.fixture(scope="module")
def julia_training():
    return parity.train(get_engine("julia", "cpu"))


def assert_same(found, expected, dtype):
    for name in ("state", "output"):
        assert_near(found[name], expected[name], parity.STATE[dtype], name)
    assert_near(found["loss"], expected["loss"], parity.GRADIENT[dtype], "loss")
    gradients = [
        {name: value for name, value in results.items() if name.startswith("gradient.")}
        for results in (found, expected)
    ]
    assert_params_near(*gradients, parity.GRADIENT[dtype])


@pytest.mark.julia
@pytest.mark.parametrize("name", parity.CASES)
def test_julia_and_jax_solve_alike(name):
    found, expected = (parity.solve(get_engine(e, "cpu"), name) for e in ("julia", "jax"))
    assert_same(found, expected, parity.CASES[name][-1])


@pytest.mark.julia
@pytest.mark.parametrize("method", ODE_METHODS)
def test_the_methods_of_julia_find_the_equilibria_of_jax(method):
    args, (x, target, weight) = parity.case("tsit5")
    loose = SolverSpec(method, abstol=1e-7, reltol=1e-7)
    found = get_engine("julia", "cpu").open(args[0], loose, *args[2:])
    expected = get_engine("jax", "cpu").open(*args)
    equilibrium = found.equilibrium(x)
    assert equilibrium.converged.all()
    assert_near(equilibrium.state, expected.equilibrium(x).state, 1e-5)
    (loss, gradient), (its_loss, its_gradient) = (
        session.loss_and_grad(x, target, weight) for session in (found, expected)
    )
    assert loss == pytest.approx(its_loss, rel=1e-5)
    assert_params_near(gradient, its_gradient, 1e-4)


@pytest.mark.julia
def test_julia_and_jax_draw_the_same_loss_curve(julia_training, jax_training):
    np.testing.assert_allclose(julia_training[0], jax_training[0], rtol=parity.LOSS_CURVE)
    assert jax_training[0][-1] < 0.5 * jax_training[0][0]  # something has been learned


@pytest.mark.julia
def test_weights_trained_by_jax_or_julia_predict_alike_in_both(julia_training, jax_training):
    (model, _, optimizer, _), (x, _, _), _ = parity.training_case()
    solver = parity.tight()
    for params in (julia_training[1], jax_training[1]):
        outputs = [
            get_engine(engine, "cpu").open(model, solver, optimizer, params).equilibrium(x[:50])
            for engine in ("julia", "jax")
        ]
        assert_near(outputs[0].output, outputs[1].output, parity.STATE["float64"])


@pytest.mark.parametrize("name", parity.CASES)
def test_jax_gives_what_julia_gave(name):
    with np.load(REFERENCE) as kept:
        prefix = f"{name}/"
        expected = {k.removeprefix(prefix): v for k, v in kept.items() if k.startswith(prefix)}
    assert_same(parity.solve(get_engine("jax", "cpu"), name), expected, parity.CASES[name][-1])


def test_jax_draws_the_loss_curve_that_julia_drew():
    with np.load(REFERENCE) as kept:
        expected = kept["loss curve"]
    found, _ = parity.train(get_engine("jax", "cpu"), N_SOME)
    np.testing.assert_allclose(found, expected[:N_SOME], rtol=parity.LOSS_CURVE)


def test_the_reference_says_what_made_it():
    with np.load(REFERENCE) as kept:
        made_by = json.loads(str(kept["made by"]))
    assert made_by["command"] == "python tests/data/make_julia_reference.py"
    assert {"julia", "Lux", "SciMLSensitivity", "pydeq"} <= made_by["versions"].keys()
