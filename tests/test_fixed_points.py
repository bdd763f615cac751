import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import sklearn.exceptions

from pydeq.errors import ConvergenceWarning
from pydeq.fixed_points import fixed_point

DOTTIE = 0.7390851332151607  # the root of cos x = x


def test_cos_from_minus_one():
    result = fixed_point(np.cos, -1.0)
    assert result.converged
    assert type(result.value) is float
    assert abs(result.value - DOTTIE) < 1e-8
    # A fixed point attracts at the rate |f'(z*)|, here |sin z*|.
    assert result.contraction_rate == pytest.approx(math.sin(DOTTIE), abs=1e-4)


def test_trajectory_is_the_iterates_and_evaluations_are_counted():
    calls = []

    def f(x):
        calls.append(x)
        return math.cos(x)

    result = fixed_point(f, -1)
    expected = [-1.0]
    while len(expected) < len(result.trajectory):
        expected.append(math.cos(expected[-1]))
    np.testing.assert_array_equal(result.trajectory, expected)
    assert result.value == expected[-1]
    assert result.n_evals == len(calls) == len(result.trajectory)


def test_stops_at_the_first_iterate_within_tolerance():
    result = fixed_point(np.cos, -1.0, abstol=1e-3, reltol=0)
    steps = np.abs(np.cos(result.trajectory) - result.trajectory)
    assert steps[-1] <= 1e-3
    assert (steps[:-1] > 1e-3).all()


@pytest.mark.parametrize(("abstol", "reltol"), [(1e-3, 0), (0, 1e-6)])
def test_either_tolerance_ends_the_search(abstol, reltol):
    # z* = 1000: an absolute step of 1e-3 there is a relative one of 1e-6.
    result = fixed_point(lambda x: 0.5 * x + 500, 0.0, abstol=abstol, reltol=reltol)
    assert result.converged
    assert len(result.trajectory) == 20
    assert result.contraction_rate == pytest.approx(0.5)


def test_residual_is_relative_and_in_the_maximum_norm():
    def f(z):
        return np.array([0.5 * z[0] + 1, 0.25 * z[1]])

    result = fixed_point(f, np.array([1.0, 4.0]), abstol=1e-2, reltol=1e-2)
    z = result.value
    assert result.residual == np.abs(f(z) - z).max() / np.abs(f(z)).max()
    assert 0 < result.residual <= 1e-2


def test_array_keeps_shape_and_contraction_rate_is_the_spectral_radius():
    # A turn by 1 rad: single ratios of the maximum norm then swing between 0.5 and 1.
    rotation = np.array([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]])
    offset = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])

    def f(z):
        return 0.7 * rotation @ z + offset

    result = fixed_point(f, np.zeros((2, 3)))
    expected = np.linalg.solve(np.eye(2) - 0.7 * rotation, offset)
    np.testing.assert_allclose(result.value, expected, atol=1e-6)
    assert result.trajectory.shape == (len(result.trajectory), 2, 3)
    assert result.contraction_rate == pytest.approx(0.7, rel=0.05)
    # Wherever the path ends.
    for abstol in np.logspace(-8, -4, 9):
        rate = fixed_point(f, np.zeros((2, 3)), abstol=abstol, reltol=0).contraction_rate
        assert rate == pytest.approx(0.7, rel=0.05)


def test_start_at_the_fixed_point_takes_one_evaluation():
    result = fixed_point(lambda x: x, 3.0)
    assert (result.value, result.n_evals, result.residual) == (3.0, 1, 0.0)
    assert math.isnan(result.contraction_rate)


def test_contraction_rate_ignores_round_off():
    # Run until nothing changes: the last steps are round-off and their ratios are noise.
    result = fixed_point(np.cos, 1.0, abstol=0, reltol=0)
    assert result.residual == 0
    assert result.contraction_rate == pytest.approx(math.sin(DOTTIE), abs=1e-4)


def test_keeps_float32_and_leaves_the_start_alone():
    start = np.ones(3, dtype=np.float32)

    def in_place(z):
        np.cos(z, out=z)
        return z

    result = fixed_point(in_place, start, abstol=1e-6)
    assert result.trajectory.dtype == np.float32
    np.testing.assert_array_equal(start, 1)
    np.testing.assert_array_equal(result.trajectory[:2, 0], np.float32([1, math.cos(1)]))
    np.testing.assert_allclose(result.value, DOTTIE, rtol=1e-5)


def test_slow_map_warns_with_the_steps_that_would_do():
    def f(x):
        return 0.9 * x + 1

    with pytest.warns(ConvergenceWarning, match="raise max_steps to about") as caught:
        result = fixed_point(f, 0.0, max_steps=50)
    assert not result.converged
    assert len(result.trajectory) == 51
    assert issubclass(caught[0].category, sklearn.exceptions.ConvergenceWarning)
    assert caught[0].filename == __file__
    message = str(caught[0].message)
    assert f"residual {result.residual:.2g}" in message
    assert "contraction rate 0.9" in message
    needed = int(message.split("max_steps to about ")[1].split(",")[0])
    assert fixed_point(f, 0.0, max_steps=needed + 1).converged
    with pytest.warns(ConvergenceWarning):
        fixed_point(f, 0.0, max_steps=needed - 5)


@pytest.mark.parametrize(
    ("f", "x0", "rate"),
    [
        (lambda x: -x, 1.0, 1.0),  # a cycle
        (lambda x: 1.1 * x, 1.0, 1.1),  # grows without bound
        (lambda x: 3.9 * x * (1 - x), 0.3, None),  # chaos
    ],
)
def test_map_that_does_not_contract_warns_with_damping(f, x0, rate):
    with pytest.warns(ConvergenceWarning, match="damped map"):
        result = fixed_point(f, x0)
    assert not result.converged
    assert result.residual > 0.05
    if rate is not None:
        assert result.contraction_rate == pytest.approx(rate)


@pytest.mark.parametrize("max_steps", [76, 338])
def test_chaos_that_happens_to_shrink_at_the_end_is_not_called_slow(max_steps):
    with pytest.warns(ConvergenceWarning, match="damped map"):
        result = fixed_point(lambda x: 3.9 * x * (1 - x), 0.3, max_steps=max_steps)
    assert result.contraction_rate < 0.8


def test_damping_as_the_warning_advises_works():
    assert fixed_point(lambda x: 0.5 * x + 0.5 * (-x), 1.0).value == 0


def test_non_finite_stops_at_once_and_numpy_stays_quiet():
    calls = 0

    def square(x):
        nonlocal calls
        calls += 1
        return x**2

    with pytest.warns(ConvergenceWarning, match="not finite after 8 steps") as caught:
        result = fixed_point(square, 10.0)  # 10 ** (2 ** 9) overflows
    assert len(caught) == 1
    assert calls == result.n_evals == 9
    assert not result.converged
    assert math.isnan(result.residual)
    assert np.isfinite(result.trajectory).all()
    assert result.value == pytest.approx(1e256)


def test_nan_in_one_element_stops_at_once():
    with pytest.warns(ConvergenceWarning, match="not finite after 0 steps"):
        result = fixed_point(np.sqrt, np.array([1.0, -1.0]))
    np.testing.assert_array_equal(result.value, [1.0, -1.0])
    assert not result.converged


def test_tolerance_below_round_off_says_so():
    def jitter(x):
        return np.nextafter(x, 2 if x <= 1 else 0)  # never rests, one unit of round-off a step

    with pytest.warns(ConvergenceWarning, match="round-off of float64; set reltol to at least"):
        assert not fixed_point(jitter, 1.0, abstol=0, reltol=0).converged


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"f": 3}, TypeError, "f must be callable"),
        ({"f": lambda x: np.zeros(2)}, ValueError, r"given shape \(\) and returned shape \(2,\)"),
        ({"f": lambda x: 1j}, TypeError, "must return real numbers"),
        ({"f": lambda x: None}, TypeError, "must return real numbers; got dtype object"),
        ({"x0": math.nan}, ValueError, "x0 must be finite"),
        ({"x0": np.array([1, np.inf])}, ValueError, "x0 must be finite"),
        ({"x0": []}, ValueError, "at least one element"),
        ({"x0": "1"}, TypeError, "x0 must be a real number"),
        ({"x0": 1j}, TypeError, "x0 must be a real number"),
        ({"abstol": -1e-3}, ValueError, "abstol must be finite and at least 0; got -0.001"),
        ({"reltol": math.nan}, ValueError, "reltol must be finite"),
        ({"reltol": "1e-3"}, TypeError, "reltol must be a number"),
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1; got 0"),
        ({"abstol": 10**400}, ValueError, "abstol must be finite and at least 0; got an integer"),
        ({"reltol": Fraction(10**400)}, ValueError, "reltol must be finite and at least 0"),
        ({"abstol": -(10**5000)}, ValueError, "abstol must be finite and at least 0; got an int"),
        ({"max_steps": 10**5000}, ValueError, r"below 2\*\*63; got an integer of 16610 bits"),
        ({"x0": np.ma.array([1.0, 2.0], mask=[0, 1])}, ValueError, "x0 has masked values"),
        (
            {"f": lambda x: np.ma.array(x, mask=x > 0), "x0": [1.0, -1.0]},
            ValueError,
            "it returned masked values",
        ),
        ({"max_steps": 1.5}, TypeError, "max_steps must be an integer"),
        ({"max_steps": True}, TypeError, "max_steps must be an integer"),
    ],
)
def test_bad_input(arguments, error, match):
    with pytest.raises(error, match=match):
        fixed_point(**({"f": np.cos, "x0": 1.0} | arguments))


@pytest.mark.parametrize("x0", [1.0, np.float32(1), np.ones(2, np.float16)])
@pytest.mark.parametrize("tolerance", [Fraction(1, 8), 10**308, np.float64(1e300), 0.125])
def test_any_real_number_is_a_tolerance(x0, tolerance):
    result = fixed_point(np.cos, x0, abstol=tolerance, reltol=0)
    assert result.converged
    assert result.n_evals == (1 if tolerance > 1 else 5)


def test_an_array_whose_mask_hides_nothing_is_an_array():
    start = np.ma.array([1.0, 2.0], mask=False)
    np.testing.assert_array_equal(
        fixed_point(np.cos, start).value, fixed_point(np.cos, start.data).value
    )


def test_what_f_raises_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        fixed_point(lambda x: 1 // 0, 1.0)


def test_converged_is_silent():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fixed_point(np.cos, 1.0)
    assert caught == []
