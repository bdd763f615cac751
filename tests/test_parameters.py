"""Every parameter's values: what is taken, what is refused, and what the refusal says."""

import math

import numpy as np
import pytest

from pydeq import DEQClassifier, DEQRegressor
from pydeq.estimators import parameters as checks
from pydeq.estimators.samples import check_sample_weight
from pydeq.model import ModelSpec, OptimizerSpec, SolverSpec, TrainSpec


def parameters(**changes):
    return DEQRegressor(**changes).get_params(deep=False)


def all_specs(params):
    """Run every check there is on the parameters of an estimator."""
    checks.check_engine(params)
    checks.check_flag(params, "warm_start")
    specs = checks.fit_specs(params, "squared_error", n_samples=50, n_features=4, n_outputs=1)
    assert type(specs.verbose) is bool
    return specs[:4]


def test_default_parameters_become_the_documented_specs():
    model, solver, optimizer, training = all_specs(parameters())
    assert model == ModelSpec(4, 1, 128, (128,), "relu", "contractive", 0.9, None)
    assert solver == SolverSpec("anderson", 1e-6, 1e-3, 1000, "implicit")
    assert optimizer == OptimizerSpec("squared_error", 2e-3, 1e-4, 1.0, True, init_penalty=1.0)
    assert training == TrainSpec(50, 200, True, 1e-4, 10, True, False, 0.1)


def test_both_estimators_have_the_same_parameters_and_defaults():
    assert DEQRegressor().get_params() == DEQClassifier().get_params()


REFUSED = {
    "n_state": [0, -1, 1.5, "100", True, np.nan],
    "hidden_layer_sizes": [0, (10, 0), (10, -1), 1.5, (1.5,), "100", None, True, (True,), [[3]]],
    "activation": ["Tanh", None, 3, ["tanh"]],
    "stability": ["contract", None],
    "contraction": [0, 1, 1.0, -0.5, 2, "0.9", None, np.nan, True],
    "jacobian_penalty": [-1, np.inf, "1"],
    "train_encoder": [1, 0, "yes", None],
    "input_shape": [4, "image", (4.0,), (2, 2), (), (True, 2, 2)],
    "encoder": [3, "Dense", {}],
    "cell": [3, b"Dense", {}],
    "decoder": [3, "Dense", {}],
    "horizon": [0, -1.0, np.inf, np.nan, "10", True],
    "solver": ["Tsit5", "lbfgs", None],
    "abstol": [-1e-6, np.inf, np.nan, "1e-3", None, False],
    "reltol": [-1e-6, np.inf, np.nan, "1e-3", None],
    "max_steps": [0, -5, 10.5, 1e3, "10", None, True],
    "adjoint": ["backsolve", None],
    "learning_rate_init": [0, -1e-3, np.inf, "1e-3", None],
    "alpha": [-1e-4, np.inf, None],
    "batch_size": [0, -1, 10.0, "all", None, True],
    "init": ["first", None, 0],
    "init_penalty": [-1.0, np.inf, None],
    "fixed_depth": [0, -1, 1.5, "2"],
    "fixed_depth_epochs": [0, -1, 1.5, None],
    "max_iter": [0, -1, 10.0, None, np.inf],
    "shuffle": [1, None, "True"],
    "tol": [-1e-4, np.nan, None],
    "n_iter_no_change": [0, -1, 2.5, None, -np.inf],
    "average": [1, None],
    "early_stopping": [1, None],
    "validation_fraction": [0, 1, 0.0, 1.0, -0.1, "0.1", None],
    "warm_start": [1, None],
    "verbose": [-1, 0.5, "yes", None],
    "engine": ["torch", None, "JAX"],
    "device": ["gpu", None],
}


def test_every_parameter_but_random_state_has_refused_values():
    assert REFUSED.keys() == parameters().keys() - {"random_state"}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values]
)
def test_a_refused_value_is_named_with_what_was_needed(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*; got ") as caught:
        all_specs(parameters(**{name: value}))
    assert str(caught.value).endswith(f"got {value!r}.")


ACCEPTED = {
    "n_state": [1, np.int64(3)],
    "hidden_layer_sizes": [5, (), [5], (5, 6), np.array([5, 6]), np.int32(5), (np.int64(5),)],
    "activation": ["identity", "logistic", "tanh", "relu", np.str_("relu")],
    "stability": ["none", "jacobian", "contractive"],
    "contraction": [0.5, np.float32(0.5)],
    "jacobian_penalty": [0, 0.0, 5],
    "train_encoder": [False, np.False_],
    "horizon": [None, 1, 2.5, np.float64(3)],
    "solver": ["auto", "tsit5", "anderson", "broyden", "newton", "fixed_point", "vcab3"],
    "abstol": [0, 0.0, 1, np.float32(1e-3)],
    "reltol": [0, 1e-12],
    "max_steps": [1, np.int16(10)],
    "adjoint": ["implicit", "jfb", "unrolled"],
    "learning_rate_init": [1, 1e-5, np.float32(0.1)],
    "alpha": [0, 1.0],
    "batch_size": ["auto", 1, 50, 51, np.int64(3)],
    "max_iter": [1, np.int64(3)],
    "tol": [0, 0.5],
    "n_iter_no_change": [1, np.inf, math.inf, np.int64(3)],
    "validation_fraction": [0.5, np.float32(0.5)],
    "verbose": [True, 0, 2, np.True_],
    "engine": ["auto", "jax", "julia"],
    "device": ["auto", "cpu", "cuda"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in ACCEPTED.items() for value in values]
)
def test_an_accepted_value_gives_specs_of_plain_python_values(name, value):
    for spec in all_specs(parameters(**{name: value})):
        hash(spec)  # engines key what they compile by it
        for field in vars(spec).values():
            values = field if isinstance(field, tuple) else (field,)
            assert {type(v) for v in values} <= {int, float, bool, str, type(None)}


@pytest.mark.parametrize("value", [5, [5], (5,), np.array([5]), np.int64(5)])
def test_hidden_layer_sizes_of_one_layer(value):
    assert all_specs(parameters(hidden_layer_sizes=value))[0].hidden_layer_sizes == (5,)


def test_the_choices_are_listed():
    with pytest.raises(ValueError, match="one of 'auto', 'tsit5', 'anderson', 'broyden'"):
        all_specs(parameters(solver="tsit"))


@pytest.mark.parametrize(
    ("batch_size", "n", "expected"),
    [("auto", 50, 50), ("auto", 1000, 200), (64, 1000, 64), (64, 10, 10), (300, 1000, 300)],
)
def test_batch_size_is_at_most_the_number_of_samples(batch_size, n, expected):
    assert checks.train_spec(parameters(batch_size=batch_size), n).batch_size == expected


def test_infinite_patience_outlasts_every_epoch():
    spec = checks.train_spec(parameters(n_iter_no_change=np.inf, max_iter=30), 10)
    assert spec.n_iter_no_change == 30


@pytest.mark.parametrize(
    "name", ["abstol", "reltol", "learning_rate_init", "alpha", "jacobian_penalty", "tol"]
)
@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), float("nan"), "1"])
def test_a_number_beyond_every_float_is_refused_in_words(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be a finite number .*; got .{{1,40}}\.$"):
        all_specs(parameters(**{name: value}))


@pytest.mark.parametrize("name", ["n_state", "max_steps", "batch_size", "max_iter"])
@pytest.mark.parametrize("value", [2**31, np.uint64(2**63), 10**400])
def test_an_integer_that_engines_cannot_count_to_is_refused_in_words(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .* at most 2\*\*31 - 1"):
        all_specs(parameters(**{name: value}))
    assert all_specs(parameters(**{name: 2**31 - 1}))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e-300, 1e-40, 1e-7, 1e7, 1e37, 1e300])
def test_weights_of_any_size_are_relative(size, dtype):
    weight = check_sample_weight(size * np.array([0.0, 1.0, 2.0, 3.0]), 4, dtype)
    assert weight.dtype == dtype
    np.testing.assert_allclose(weight, [0.0, 0.5, 1.0, 1.5], rtol=1e-6)


def test_weights_of_common_size_stay_as_they_are():
    weight = np.array([0.0, 0.25, 1000.0])
    np.testing.assert_array_equal(check_sample_weight(weight, 3, "float64"), weight)


# --- combinations ---


def test_state_without_encoder_needs_equal_widths_and_says_both():
    with pytest.raises(ValueError, match=r"4 feature\(s\) .* 3 column\(s\).*n_state=100"):
        checks.model_spec(parameters(n_state=None), 4, 3)
    assert checks.model_spec(parameters(n_state=None), 3, 3).n_state is None


@pytest.mark.parametrize("solver", ["anderson", "newton", "fixed_point"])
def test_a_horizon_needs_the_ode_solver(solver):
    with pytest.raises(ValueError, match=f"needs solver='tsit5'; got solver='{solver}'"):
        all_specs(parameters(horizon=5.0, solver=solver))


@pytest.mark.parametrize(
    ("stability", "horizon", "expected"),
    [
        ("contractive", None, "anderson"),
        ("monotone", None, "peaceman_rachford"),
        ("none", None, "tsit5"),
        ("jacobian", None, "tsit5"),
        ("contractive", 2.0, "tsit5"),
        ("monotone", 2.0, "tsit5"),
    ],
)
def test_auto_takes_a_solver_that_must_find_the_state(stability, horizon, expected):
    sizes = () if stability == "monotone" else (128,)
    changes = {"stability": stability, "horizon": horizon, "hidden_layer_sizes": sizes}
    _, solver, *_ = all_specs(parameters(**changes, solver="auto"))
    assert solver.name == expected


def test_the_monotone_cell_has_no_hidden_layers():
    model, *_ = all_specs(parameters(stability="monotone", hidden_layer_sizes=()))
    assert model.hidden_layer_sizes == ()
    with pytest.raises(ValueError, match=r"needs hidden_layer_sizes=\(\); got \(5, 6\)"):
        all_specs(parameters(stability="monotone", hidden_layer_sizes=(5, 6)))


def test_splitting_needs_the_monotone_cell():
    needed = "needs stability='monotone'; got stability='contractive'"
    with pytest.raises(ValueError, match=needed):
        all_specs(parameters(solver="peaceman_rachford"))


def test_newton_cannot_be_unrolled():
    with pytest.raises(ValueError, match="adjoint='unrolled' does not work with solver='newton'"):
        all_specs(parameters(adjoint="unrolled", solver="newton"))
    with pytest.raises(ValueError, match="adjoint='unrolled' does not work with solver='bs3'"):
        all_specs(parameters(adjoint="unrolled", solver="bs3"))
    all_specs(parameters(adjoint="unrolled", solver="bs3", horizon=2.0))


def test_both_tolerances_zero_is_no_tolerance():
    with pytest.raises(ValueError, match="abstol=0 together with reltol=0"):
        all_specs(parameters(abstol=0, reltol=0.0))


def test_the_odes_tolerances_are_never_looser_than_the_searchs():
    model = ModelSpec(1, 1, None, ())
    assert SolverSpec(abstol=1e-2, reltol=1e-2).ode_tolerances(model) == (1e-6, 1e-3)
    assert SolverSpec(abstol=1e-8, reltol=1e-4).ode_tolerances(model) == (1e-6, 1e-4)
    assert SolverSpec(abstol=1e-9, reltol=0.0).ode_tolerances(model) == (1e-9, 1e-9)
    finite = ModelSpec(1, 1, None, (), horizon=2.0)
    assert SolverSpec(abstol=1e-2, reltol=0.1).ode_tolerances(finite) == (1e-2, 0.1)


# --- sample weights ---


def test_no_sample_weight_is_all_ones_in_the_dtype():
    weight = check_sample_weight(None, 3, np.float32)
    np.testing.assert_array_equal(weight, np.ones(3, np.float32), strict=True)


def test_sample_weight_takes_the_dtype_of_the_model():
    weight = check_sample_weight([1, 0, 2], 3, np.float32)
    np.testing.assert_array_equal(weight, np.array([1, 0, 2], np.float32), strict=True)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1, 2], r"shape \(3,\); got shape \(2,\)"),
        ([[1, 1, 1]], r"shape \(3,\); got shape \(1, 3\)"),
        ([1, -0.5, 1], "not be negative; its smallest is -0.5"),
        ([0, 0, 0], "above zero for at least one sample"),
        ([1, np.nan, 1], "sample_weight contains NaN"),
        ([1, np.inf, 1], "sample_weight contains infinity"),
    ],
)
def test_sample_weight_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        check_sample_weight(weight, 3, np.float64)


# --- the rest ---


@pytest.mark.parametrize("depth", [-1, 1.5, None, True])
def test_depth_refused(depth):
    with pytest.raises(ValueError, match=r"^depth must be an integer of at least 0"):
        checks.check_depth(depth)


def test_a_changed_model_is_named_field_by_field():
    fitted = ModelSpec(4, 1, 100, (100,), "tanh")
    checks.check_same_model(fitted, ModelSpec(4, 1, 100, (100,), "tanh"), "partial_fit")
    asked = ModelSpec(4, 1, 50, (100,), "relu")
    with pytest.raises(ValueError, match=r"^partial_fit goes on") as caught:
        checks.check_same_model(fitted, asked, "partial_fit")
    assert "n_state was 100 and is now 50; activation was 'tanh' and is now 'relu'" in str(
        caught.value
    )
