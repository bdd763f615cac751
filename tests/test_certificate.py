"""Certificates against dense eigenvalues of differences and equilibria of the float64 oracle."""

import tracemalloc

import numpy as np
import oracle_math as om
import pytest
import scipy.sparse.linalg
from certificate_cases import (
    ABSCISSA_TOLERANCE,
    WIDE,
    abscissa_by_differences,
    affine,
    lipschitz,
    problem,
    spec,
)
from helpers import random_params

from pydeq.model import ACTIVATIONS, certificate
from pydeq.model.certificate import (
    contraction_distance_bound,
    distance_bound,
    spectral_abscissa,
)

# --- spectral abscissa ---


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(), (8,), (5, 9, 7)])
@pytest.mark.parametrize("n_state", [None, 6, WIDE])
@pytest.mark.parametrize("stability", ["none", "contractive"])
def test_abscissa_is_that_of_a_dense_jacobian(activation, hidden, n_state, stability):
    model = spec(n_state, hidden, activation=activation, stability=stability)
    params, x, layers, h, z = problem(model)
    found = spectral_abscissa(model, params, x, z)
    expected = abscissa_by_differences(model, layers, h, z)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ABSCISSA_TOLERANCE)


@pytest.mark.parametrize("hidden", [(), (WIDE,)])
def test_abscissa_of_wide_states_at_the_brink(hidden):
    # Glorot weights three times their size: eigenvalues fill a disc, the hard case for Arnoldi's
    # method, and reach into the right half-plane.
    model = spec(WIDE, hidden, activation="tanh")
    params, x, layers, h, _ = problem(model, scale=3.0)
    z = 0.1 * h  # no equilibrium is needed
    expected = abscissa_by_differences(model, layers, h, z)
    assert expected.max() > 0.3
    found = spectral_abscissa(model, params, x, z)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ABSCISSA_TOLERANCE)


@pytest.mark.parametrize("n_state", [6, WIDE])
def test_abscissa_of_a_float32_model(n_state):
    model = spec(n_state, stability="contractive", activation="tanh")
    params, x, layers, h, z = problem(model, "float32")
    found = spectral_abscissa(model, params, x, z.astype("float32"))
    assert found.dtype == np.float64
    expected = abscissa_by_differences(model, layers, h, z)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ABSCISSA_TOLERANCE)


def test_abscissa_of_a_jacobian_that_is_not_normal():
    # Eigenvalues 0.5 and 0.2, while the symmetric part's are as large as 5.4.
    model, params = affine([[0.5, 10.0], [0.0, 0.2]])
    found = spectral_abscissa(model, params, np.ones((1, 2)), np.ones((1, 2)))
    np.testing.assert_allclose(found, [-0.5], rtol=0, atol=1e-12)


def test_abscissa_of_a_wide_jacobian_that_is_not_normal():
    eigenvalues = np.linspace(-1, 0.9, WIDE)
    matrix = np.diag(eigenvalues) + np.diag(np.full(WIDE - 1, 0.05), 1)
    assert np.linalg.eigvalsh((matrix + matrix.T) / 2).max() > 0.905  # its field of values
    model, params = affine(matrix)
    x = np.ones((1, WIDE))
    np.testing.assert_allclose(spectral_abscissa(model, params, x, x), [-0.1], rtol=0, atol=1e-5)


def test_a_positive_abscissa_is_the_rate_at_which_the_ode_leaves():
    model, params = affine([[1.25, 0.5], [-0.5, 1.25]])  # eigenvalues 1.25 +- 0.5i
    x = np.ones((1, 2))
    layers = om.cell_layers(model, params)
    z = np.linalg.solve(np.eye(2) - layers[0][0].T, layers[0][0].T @ x[0])[None]
    (rate,) = spectral_abscissa(model, params, x, z)
    assert rate == pytest.approx(0.25)
    u, dt = z + np.array([[1e-6, 0]]), 1e-3
    for _ in range(4000):
        _, u = om.rk4_stages(model, layers, u, x, dt)
    assert np.linalg.norm(u - z) == pytest.approx(1e-6 * np.exp(rate * 4), rel=1e-3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n_state", [None, 6, WIDE])
def test_abscissa_of_the_monotone_cell(n_state, activation):
    model = spec(n_state, (), stability="monotone", activation=activation)
    params, x, layers, h, z = problem(model)
    found = spectral_abscissa(model, params, x, z)
    expected = abscissa_by_differences(model, layers, h, z)
    # In a crowd of eigenvalues ARPACK may take the next for the rightmost.
    tolerance = 5e-3 if n_state == WIDE else ABSCISSA_TOLERANCE
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("distance", [1e-12, 1e-6, 1e-2, 100.0])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bound_of_the_monotone_cell_holds(activation, distance):
    model = spec(6, (), stability="monotone", activation=activation)
    params, x, layers, h, z = problem(model)
    assert np.abs(om.cell(model, layers, z, h) - z).max() < 1e-14
    off = np.random.default_rng(2).normal(size=z.shape)
    off *= distance / np.linalg.norm(off, axis=1, keepdims=True)
    bound = distance_bound(model, params, x, z + off)
    exact = np.linalg.norm(off, axis=1)
    assert (bound >= exact * (1 - 1e-3)).all()  # of 1e-12, z itself is known to 1e-15
    norm = np.linalg.norm(layers[0][0], 2)
    largest_gap = (1 + norm) * exact
    assert (bound <= 1.01 * largest_gap * (1 + norm) + 1e-11).all()


def test_bound_of_a_monotone_cell_covers_what_cancels_in_its_weight():
    # A A^T of size 1e8 against m: what its rounding does to the state counts.
    model = spec(2, (), stability="monotone", activation="identity")
    params = random_params(model)
    params["cell.0.weight"] = 1e4 * np.eye(2)
    found = distance_bound(model, params, np.ones((1, 3)), np.ones((1, 2)))
    params["cell.0.weight"] = np.zeros((2, 2))
    assert found[0] > distance_bound(model, params, np.ones((1, 3)), np.ones((1, 2)))[0]


@pytest.mark.parametrize("factor", [0.0, 0.3, -2.0, 1.5])
def test_abscissa_of_a_multiple_of_the_identity(factor):
    # A Krylov space of dimension one, and for 0 of none.
    model, params = affine(factor * np.eye(WIDE))
    x = np.ones((2, WIDE))
    found = spectral_abscissa(model, params, x, x)
    np.testing.assert_allclose(found, factor - 1, rtol=0, atol=1e-12)


def test_what_arpack_does_not_find_is_computed_densely(monkeypatch):
    model = spec(WIDE, (20,), activation="tanh")
    params, x, layers, h, z = problem(model)
    monkeypatch.setattr(certificate, "ARPACK_RESTARTS", 1)
    monkeypatch.setattr(certificate, "ARPACK_NCV", 4)
    failures = []

    def eigs(*args, **kwargs):
        try:
            return scipy_eigs(*args, **kwargs)
        except scipy.sparse.linalg.ArpackNoConvergence as failure:
            failures.append(failure)
            raise

    scipy_eigs = scipy.sparse.linalg.eigs
    monkeypatch.setattr(scipy.sparse.linalg, "eigs", eigs)
    found = spectral_abscissa(model, params, x, z)
    assert len(failures) == len(z)
    expected = abscissa_by_differences(model, layers, h, z)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("n_state", [6, WIDE])
def test_a_contractive_cell_is_stable_by_its_contraction(n_state):
    model = spec(n_state, stability="contractive", contraction=0.8)
    params, x, *_, z = problem(model, scale=5.0)
    found = spectral_abscissa(model, params, x, z)
    assert found.max() <= 0.8 - 1
    assert found.max() > -1


# --- distance bound ---


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(), (8,), (5, 9, 7)])
@pytest.mark.parametrize("n_state", [None, 6, 40])
@pytest.mark.parametrize("loose", [1.0, 1e-2, 1e-6])
def test_the_bound_holds_and_is_no_larger_than_it_has_to_be(
    loose, n_state, hidden, activation, dtype
):
    model = spec(n_state, hidden, activation=activation, stability="contractive", contraction=0.9)
    params, x, layers, _, exact = problem(model, dtype, scale=3.0)
    noise = np.random.default_rng(2).normal(size=exact.shape)
    z = (exact + loose * noise).astype(dtype)
    distance = np.linalg.norm(z - exact, axis=1)
    bound = distance_bound(model, params, x, z)
    assert bound.dtype == np.float64
    q = lipschitz(model, layers)
    assert q <= 0.9 + 1e-12
    assert (bound >= distance - 1e-13).all()  # the oracle's own error
    # ||f(z) - z|| <= ||f(z) - f(z*)|| + ||z* - z||
    assert (bound <= (1 + q) / (1 - q) * distance + 1e-9).all()


def test_the_bound_covers_its_own_rounding():
    # In longdouble, 11 bits more; a cell that contracts as it is, so that nothing is scaled.
    model = spec(2, (3,), activation="tanh", stability="none")
    params, x, *_ = problem(model, n=300, scale=0.3)
    fine = {name: value.astype(np.longdouble) for name, value in params.items()}
    layers = [(fine[f"cell.{i}.weight"], fine[f"cell.{i}.bias"]) for i in range(2)]
    h = x @ fine["encoder.weight"] + fine["encoder.bias"]
    exact = np.zeros_like(h)
    for _ in range(100):
        exact = om.cell(model, layers, exact, h)
    z = exact.astype(np.float64)
    distance = np.sqrt(((z - exact) ** 2).sum(axis=1)).astype(np.float64)
    bound = distance_bound(model, params, x, z)
    assert (bound >= distance).all()
    assert bound.max() < 1e-12
    # The float64 residual alone would promise too much.
    coarse = [(weight.astype(np.float64), bias.astype(np.float64)) for weight, bias in layers]
    fz = om.cell(model, coarse, z, h.astype(np.float64))
    naive = contraction_distance_bound(z, fz, lipschitz(model, coarse))
    assert (naive < distance).any()


@pytest.mark.parametrize("contraction", [0.5, 0.9, 1 - 1e-6])
def test_the_bound_is_the_distance_where_the_cell_is_a_multiple_of_a_projection(contraction):
    # One singular value, scaled to the contraction: z = q d d.(z + x) has d.z = q d.x / (1 - q).
    direction, x = np.array([0.6, 0.8]), np.array([[1.0, 2.0]])
    model, params = affine(
        7 * np.outer(direction, direction), stability="contractive", contraction=contraction
    )
    exact = contraction / (1 - contraction) * (x @ direction)[:, None] * direction
    z = 1.01 * exact
    found = distance_bound(model, params, x, z)
    np.testing.assert_allclose(found, np.linalg.norm(0.01 * exact), rtol=1e-4)


def test_the_bound_knows_what_the_scaling_leaves():
    # 40 equal singular values, of which the norm that is scaled by makes 40^(1/128) times as much.
    model, params = affine(3 * np.eye(40), stability="contractive", contraction=0.9)
    x = np.ones((1, 40))
    q = 0.9 / 40 ** (1 / 128)
    exact = q / (1 - q) * x
    np.testing.assert_allclose(
        distance_bound(model, params, x, 1.01 * exact), np.linalg.norm(0.01 * exact), rtol=1e-9
    )


def test_a_contractive_cell_has_a_bound_however_near_to_one():
    model, params = affine(np.ones((1, 1)), stability="contractive", contraction=1 - 2**-52)
    x = np.ones((1, 1))
    assert np.isfinite(distance_bound(model, params, x, x)).all()


def test_logistic_counts_with_its_own_lipschitz_constant():
    model = spec(6, (8,), activation="logistic", stability="none")
    params, x, layers, _, exact = problem(model, scale=0.9)
    q = lipschitz(model, layers)
    assert 1 < q < 4
    bound = distance_bound(model, params, x, exact + 0.1)
    distance = 0.1 * np.sqrt(6)
    assert (bound >= distance).all()
    assert (bound <= (1 + q / 4) / (1 - q / 4) * distance * (1 + 1e-9)).all()


def test_no_guarantee_is_inf():
    for stability in ("none", "jacobian"):
        model = spec(stability=stability, activation="relu")
        params, x, *_ = problem(model, scale=3.0)
        z = np.zeros((len(x), 6))
        np.testing.assert_array_equal(distance_bound(model, params, x, z), np.inf)
    z = np.zeros((3, 2))
    np.testing.assert_array_equal(contraction_distance_bound(z, z, 1.0), np.inf)
    np.testing.assert_array_equal(contraction_distance_bound(z, z, np.nan), np.inf)


def test_a_finite_horizon_has_an_abscissa_but_no_bound():
    model = spec(stability="contractive", horizon=2.0)
    params, x, layers, h, _ = problem(model)
    u = om.horizon_state(model, layers, h)[0]
    np.testing.assert_array_equal(distance_bound(model, params, x, u), np.inf)
    expected = abscissa_by_differences(model, layers, h, u)
    found = spectral_abscissa(model, params, x, u)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ABSCISSA_TOLERANCE)


# --- many samples, and states that are not finite ---


@pytest.mark.parametrize("n_state", [6, WIDE])
def test_certificates_do_not_depend_on_chunks(n_state, monkeypatch):
    model = spec(n_state, stability="contractive")
    params, x, *_, z = problem(model, n=11)
    together = [f(model, params, x, z) for f in (spectral_abscissa, distance_bound)]
    monkeypatch.setattr(certificate, "CHUNK_BYTES", 4 * 8 * n_state * max(n_state, 8))
    apart = [f(model, params, x, z) for f in (spectral_abscissa, distance_bound)]
    monkeypatch.setattr(certificate, "CHUNK_BYTES", 1)
    alone = [f(model, params, x, z) for f in (spectral_abscissa, distance_bound)]
    np.testing.assert_allclose(apart, together, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(alone, together, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("function", [spectral_abscissa, distance_bound])
def test_many_samples_take_no_more_memory_than_a_chunk_of_them(function, monkeypatch):
    model = spec(50, stability="contractive")
    params, x, *_, z = problem(model)
    x, z = np.tile(x, (200, 1)), np.tile(z, (200, 1))  # with 28 MB of Jacobians

    def peak():
        tracemalloc.start()
        function(model, params, x, z)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    whole = peak()
    monkeypatch.setattr(certificate, "CHUNK_BYTES", 2**18)
    assert peak() < min(whole / 2, 4 * 2**18)


@pytest.mark.parametrize("n_state", [6, WIDE])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_states_that_are_not_finite(n_state, activation):
    model = spec(n_state, stability="contractive", activation=activation)
    params, x, *_, z = problem(model, "float32")
    z = z.astype("float32")
    expected = spectral_abscissa(model, params, x, z), distance_bound(model, params, x, z)
    bad = z.copy()
    bad[1, 2], bad[3], bad[4, 0] = np.nan, np.inf, -np.inf
    abscissa, bound = (
        spectral_abscissa(model, params, x, bad),
        distance_bound(model, params, x, bad),
    )
    rows = np.isin(np.arange(len(x)), [1, 3, 4])
    assert np.isnan(abscissa[rows]).all()
    assert (bound[rows] == np.inf).all()
    np.testing.assert_allclose(abscissa[~rows], expected[0][~rows], rtol=1e-10)
    np.testing.assert_allclose(bound[~rows], expected[1][~rows], rtol=1e-10)
    everywhere = np.full_like(z, np.nan)
    assert np.isnan(spectral_abscissa(model, params, x, everywhere)).all()
    assert (distance_bound(model, params, x, everywhere) == np.inf).all()


def test_states_near_the_largest_number():
    model = spec(6, activation="relu", stability="contractive")
    params, x, *_ = problem(model)
    z = np.full((len(x), 6), 1e200)
    assert np.isfinite(spectral_abscissa(model, params, x, z)).all()
    assert (distance_bound(model, params, x, z) >= 1e200).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(value):
    model = spec(stability="contractive")
    params, x, *_, z = problem(model)
    params["cell.0.weight"][0, 0] = value
    assert np.isnan(spectral_abscissa(model, params, x, z)).all()
    assert (distance_bound(model, params, x, z) == np.inf).all()


def test_a_cell_of_zeros():
    model, params = affine(np.zeros((3, 3)), stability="contractive")
    x = np.ones((1, 3))
    np.testing.assert_allclose(spectral_abscissa(model, params, x, x), -1)
    np.testing.assert_allclose(distance_bound(model, params, x, x), np.sqrt(3))
