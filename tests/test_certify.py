"""Certificates as the estimators give them."""

import contextlib
import dataclasses

import numpy as np
import oracle_math as om
import pytest
from certificate_cases import ABSCISSA_TOLERANCE, abscissa_by_differences

from pydeq import ConvergenceWarning, DEQClassifier, DEQRegressor
from pydeq.model import Equilibrium


def fitted(cls=DEQRegressor, dtype="float64", **changes):
    X = np.random.default_rng(0).normal(size=(30, 3)).astype(dtype)
    y = X[:, 0] if cls is DEQRegressor else (X[:, 0] > 0).astype(int)
    parameters = {"n_state": 6, "hidden_layer_sizes": 8, "max_iter": 2, "random_state": 0}
    return cls(**parameters | changes).fit(X, y), X


@pytest.mark.parametrize("cls", [DEQRegressor, DEQClassifier])
def test_certificates_are_added_when_asked_for(cls, on_oracle):
    model, X = fitted(cls)
    plain, found = model.equilibrium(X), model.equilibrium(X.tolist(), certify=True)
    for field in dataclasses.fields(Equilibrium):
        if field.default is dataclasses.MISSING:
            np.testing.assert_array_equal(getattr(found, field.name), getattr(plain, field.name))
    assert plain.certificates is None
    assert (
        found.certificates.spectral_abscissa.shape
        == found.certificates.distance_bound.shape
        == (30,)
    )
    assert (found.certificates.spectral_abscissa <= 0.9 - 1).all()
    assert (found.certificates.distance_bound < 1e-6).all()  # the oracle's Newton steps


@pytest.mark.parametrize("solver", ["tsit5", "anderson"])
@pytest.mark.parametrize("reltol", [0.1, 1e-3])
def test_what_jax_finds_in_float32_is_within_the_bound(solver, reltol):
    model, X = fitted(dtype="float32", solver=solver, max_iter=5, contraction=0.95)
    model.set_params(reltol=reltol, abstol=1e-8)
    found = model.equilibrium(X, certify=True)
    params = {name: value.astype("float64") for name, value in model.params_.items()}
    layers = om.cell_layers(model.model_spec_, params)
    h = X.astype("float64") @ params["encoder.weight"] + params["encoder.bias"]
    exact = om.steady_state(model.model_spec_, layers, h)[0]
    distance = np.linalg.norm(found.state - exact, axis=1)
    assert (found.certificates.distance_bound >= distance).all()
    assert (found.certificates.distance_bound <= 2 / (1 - 0.95) * distance + 1e-12).all()
    expected = abscissa_by_differences(model.model_spec_, layers, h, found.state)
    np.testing.assert_allclose(
        found.certificates.spectral_abscissa, expected, rtol=0, atol=ABSCISSA_TOLERANCE
    )


def test_samples_that_do_not_converge_are_certified_too():
    model, X = fitted(solver="fixed_point", contraction=0.99)
    model.set_params(max_steps=1, reltol=1e-12, abstol=1e-12)
    with pytest.warns(ConvergenceWarning) as caught:
        found = model.equilibrium(X, certify=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert not found.converged.any()
    assert np.isfinite(found.certificates.distance_bound).all()


@pytest.mark.parametrize("value", [1, "yes", None])
def test_certify_is_true_or_false(value, on_oracle):
    model, X = fitted()
    with pytest.raises(ValueError, match="certify must be True or False"):
        model.equilibrium(X, certify=value)
    with contextlib.suppress(ConvergenceWarning):
        assert model.equilibrium(X, certify=np.True_).certificates is not None
