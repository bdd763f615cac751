"""A state of several resolutions: shapes, values, gradients, bounds, files, and what is refused."""

import dataclasses
import json
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.signal
from helpers import (
    DIFFERENCE_TOLERANCE,
    GRADIENT_TOLERANCE,
    STATE_TOLERANCE,
    assert_near,
    assert_params_equal,
    assert_params_near,
    difference_quotient,
    inner,
    random_direction,
    random_params,
    tight,
)
from sklearn.base import clone

from pydeq import DEQClassifier, load
from pydeq.engines import get_engine
from pydeq.engines.julia.layers import describe
from pydeq.estimators.layer_json import layer_from_json, layer_to_json
from pydeq.layers import Activation, Branches, Conv, Dense, Flatten, Fuse, GroupNorm, Residual
from pydeq.model import ModelSpec, OptimizerSpec, SolverSpec, certify, loss, parameter_shapes
from pydeq.model.bounds import lipschitz, log_scaling_bounds
from pydeq.model.cell import acting_cell, linearize
from pydeq.model.forward import forward
from pydeq.model.network import place, placed_parameters

# 5 x 3 pixels, and 3 x 2: the finer is not twice the coarser.
IMAGES = ((2, 5, 3), (3, 3, 2))
N_STATE = 48
ENCODER = (Branches([[Conv(2)], [Conv(3, stride=2), Activation("tanh")]]),)
CELL = (Branches([[Conv(2), Activation("tanh")], [Residual(Conv(3, 1))]]), Fuse())
MODEL = ModelSpec(
    15,
    2,
    N_STATE,
    (),
    stability="contractive",
    input_shape=(1, 5, 3),
    encoder=ENCODER,
    cell=CELL,
    decoder=(Flatten(), Dense(2)),
)
PARAMS = random_params(MODEL, scale=2.0)
X = np.random.default_rng(1).normal(size=(4, 15))
TARGET = np.random.default_rng(2).normal(size=(4, 2))
WEIGHT = np.array([1.0, 2.0, 0.5, 1.0])


def opened(solver, params=PARAMS, model=MODEL):
    return get_engine("jax", "cpu").open(model, solver, OptimizerSpec(), params)


def of_images(layer, given=IMAGES, seed=0):
    """Return a layer in its place, random weights, and its linear part as a matrix."""
    part, _ = place("cell", (layer,), given)
    rng = np.random.default_rng(seed)
    params = {name: rng.normal(size=s) for name, s in placed_parameters(part).items()}
    basis = np.eye(np.prod(part[0].takes)).reshape(-1, *part[0].takes)
    offset = forward(part, params, np.zeros((1, *part[0].takes)))
    return part, params, (forward(part, params, basis) - offset).reshape(len(basis), -1)


def test_shapes_and_names():
    assert MODEL.network.state_shape == IMAGES
    assert MODEL.state_width == N_STATE
    names = [name for name in parameter_shapes(MODEL) if name.endswith("weight")]
    assert names == [
        *("encoder.0.0.weight", "encoder.1.0.weight", "cell.0.0.0.weight", "cell.0.1.0.0.weight"),
        *("cell.1.0.1.weight", "cell.1.1.0.weight", "decoder.weight"),
    ]
    shapes = parameter_shapes(MODEL)
    assert shapes["cell.1.0.1.weight"] == (2, 3, 1, 1)  # what the finer gets of the coarser
    assert shapes["cell.1.1.0.weight"] == (3, 2, 3, 3)
    given = ((1, 9, 9), (2, 5, 5), (3, 2, 2))  # steps 2, 5 and 3
    convs = {path[:2]: (path.step, path.conv) for path in Fuse().paths(given)}
    assert convs[2, 0] == (5, Conv(3, 6, stride=5))
    assert convs[1, 2] == (3, Conv(2, 1))


def correlated(image, weight, bias, step=1):
    """Return a convolution of one image with zeros around it, by scipy."""
    k = weight.shape[2]
    padded = np.pad(image, ((0, 0), *[((k - 1) // 2, k // 2)] * 2))
    made = [
        sum(scipy.signal.correlate2d(a, w, "valid") for a, w in zip(padded, own, strict=True))
        for own in weight
    ]
    return (np.array(made) + bias[:, None, None])[:, ::step, ::step]


def f_of_one(params, v):
    """Return the cell, written out by hand, of one sample ``(n_state,)``."""
    w = {name: (params[f"{name}.weight"], params[f"{name}.bias"]) for name in PATHS}
    fine, coarse = v[:30].reshape(2, 5, 3), v[30:].reshape(3, 3, 2)
    fine = np.tanh(correlated(fine, *w["cell.0.0.0"]))
    coarse = coarse + correlated(coarse, *w["cell.0.1.0.0"])
    factor = params.get("cell.0.factor", 1.0)
    fine, coarse = factor * fine, factor * coarse
    up = correlated(coarse, *w["cell.1.0.1"])
    spread = np.array([[up[:, i // 2, j // 2] for j in range(3)] for i in range(5)])
    down = correlated(fine, *w["cell.1.1.0"], step=2)
    made = np.concatenate([(fine + spread.transpose(2, 0, 1)).ravel(), (coarse + down).ravel()])
    return params.get("cell.1.factor", 1.0) * made


PATHS = ("cell.0.0.0", "cell.0.1.0.0", "cell.1.0.1", "cell.1.1.0")


@pytest.mark.parametrize("stability", ["none", "contractive"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_values_are_those_written_out_by_hand(stability, dtype):
    model = dataclasses.replace(MODEL, stability=stability)
    params = {name: value.astype(dtype) for name, value in PARAMS.items()}
    u, fu = opened(SolverSpec("anderson"), params, model).trajectory(X.astype(dtype), 1)
    acting = acting_cell(model, params)
    assert ("cell.1.factor" in acting.params) == (stability == "contractive")
    encoder = forward(model.network.encoder, PARAMS, X.reshape(-1, 1, 5, 3))
    expected = [f_of_one(acting.params, v) for v in u + encoder]
    assert_near(fu, expected, STATE_TOLERANCE[dtype])
    assert_near(linearize(model, params, acting, X, u).value, expected, STATE_TOLERANCE[dtype])


@pytest.fixture(scope="module")
def exact():
    """Equilibria, and the gradient, by Anderson's method."""
    session = opened(tight(name="anderson"))
    return session.equilibrium(X), session.loss_and_grad(X, TARGET, WEIGHT)[1]


@pytest.mark.parametrize("name", ["tsit5", "broyden", "newton", "fixed_point"])
def test_every_solver_finds_the_equilibria(name, exact):
    found = opened(tight(name=name)).equilibrium(X)
    assert found.converged.all()
    assert_near(found.state, exact[0].state, STATE_TOLERANCE["float64"])


def output_loss(params, state):
    output = forward(MODEL.network.decoder, params, state)
    return loss("squared_error", output, TARGET, WEIGHT)


def test_implicit_gradient_is_that_of_differences(exact):
    direction = random_direction(PARAMS, 3)
    expected = difference_quotient(
        lambda params: output_loss(
            params, opened(tight(name="anderson"), params).equilibrium(X).state
        ),
        PARAMS,
        direction,
    )
    assert inner(exact[1], direction) == pytest.approx(expected, rel=DIFFERENCE_TOLERANCE)
    assert all(np.abs(value).max() > 0 for value in exact[1].values())


def test_unrolled_gradient_is_the_implicit_one(exact):
    solver = tight(name="fixed_point", adjoint="unrolled", max_steps=150)
    found = opened(solver).loss_and_grad(X, TARGET, WEIGHT)[1]
    assert_params_near(found, exact[1], GRADIENT_TOLERANCE["float64"])


def test_jfb_is_the_gradient_of_one_step(exact):
    found = opened(tight(name="anderson", adjoint="jfb")).loss_and_grad(X, TARGET, WEIGHT)[1]
    state, direction = exact[0].state, random_direction(PARAMS, 3)

    def of_one_step(params):
        return output_loss(
            params, linearize(MODEL, params, acting_cell(MODEL, params), X, state).value
        )

    expected = difference_quotient(of_one_step, PARAMS, direction)
    assert inner(found, direction) == pytest.approx(expected, rel=DIFFERENCE_TOLERANCE)


@pytest.mark.parametrize("stability", ["none", "contractive"])
def test_certificates_and_derivatives(stability, exact):
    model = dataclasses.replace(MODEL, stability=stability)
    state = exact[0].state
    here = linearize(model, PARAMS, acting_cell(model, PARAMS), X, state)
    for i, step in enumerate(1e-6 * np.eye(N_STATE)):
        ends = [
            linearize(model, PARAMS, here.cell, X, state + side * step).value for side in (1, -1)
        ]
        assert_near(here.jacobians()[:, i], (ends[0] - ends[1]) / 2e-6, 1e-6)
    largest = np.linalg.svd(here.jacobians(), compute_uv=False).max()
    assert 0.05 < largest <= here.lipschitz
    if stability == "none":
        return
    assert here.lipschitz <= model.contraction
    near = opened(SolverSpec("anderson", 1e-2, 1e-2)).equilibrium(X)
    certificates = certify(model, PARAMS, X, near).certificates
    distance = np.linalg.norm(near.state - state, axis=1)
    assert (distance <= certificates.distance_bound).all()
    assert (certificates.distance_bound < 100 * distance).all()
    assert (certificates.spectral_abscissa < 0).all()


THREE = ((2, 6, 6), (3, 3, 3), (1, 2, 2))


@pytest.mark.parametrize(
    ("layer", "given", "most"),
    [
        (Fuse(), IMAGES, 2.2),
        (Fuse(), THREE, 2.2),
        (Branches([[Conv(2)], [Conv(3, 1)]]), IMAGES, 2.2),
        (Branches([[Conv(2, 1)], []]), IMAGES, 1 + 1e-12),
        (Branches([[Conv(2, 1)], [Conv(3, 1)]]), (2, 5, 3), 1.5),
        (Residual([Branches([[Conv(2)], [Conv(3, 2)]]), Fuse()]), IMAGES, 4.0),
    ],
    ids=repr,
)
def test_bound_is_above_the_dense_singular_values(layer, given, most):
    part, params, matrix = of_images(layer, given)
    exact, bound = np.linalg.norm(matrix, 2), lipschitz(part, params)
    assert exact <= bound * (1 + 1e-12)
    assert bound <= most * exact
    (log,) = log_scaling_bounds(part, params)  # of Gram iteration
    assert bound <= np.exp(log) * (1 + 1e-12)
    assert np.exp(log) <= 1.05 * bound


GIVEN: dict[str, Any] = {
    "input_shape": (1, 5, 3),
    "encoder": ENCODER,
    "cell": CELL,
    "decoder": [Flatten(), Dense(2)],
    "max_iter": 2,
    "random_state": 0,
    "engine": "jax",
}
Y = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    "how",
    [
        {},
        {
            "stability": "jacobian",
            "cell": [Branches([[GroupNorm(1), Conv(2)], [Conv(3, 2)]]), Fuse(), Activation("tanh")],
        },
    ],
    ids=["contractive", "jacobian"],
)
def test_fit_save_load_clone(how, tmp_path):
    model = DEQClassifier(**{**GIVEN, **how}).fit(X, Y)
    assert model.equilibrium(X).converged.all()
    assert model.history_[-1].n_failed == 0
    model.save(tmp_path / "model")
    same = load(tmp_path / "model")
    assert same.model_spec_ == model.model_spec_
    assert_params_equal(same.params_, model.params_)
    np.testing.assert_array_equal(same.predict_proba(X), model.predict_proba(X))
    assert pickle.loads(pickle.dumps(model)).get_params() == model.get_params()
    assert clone(model).get_params() == model.get_params()


@pytest.mark.parametrize("layer", [Fuse(), Branches([[Conv(2), Residual(Conv(2))], []])])
def test_json_and_back(layer):
    assert layer_from_json(json.loads(json.dumps(layer_to_json(layer)))) == layer


@pytest.mark.parametrize("branches", [3, [3, 4], [{}, {}], [[[]], []], [[{"layer": "Conv"}], []]])
def test_json_that_is_no_branches_is_refused(branches):
    with pytest.raises(ValueError, match=r"layer|branches|Conv|Branches"):
        layer_from_json({"layer": "Branches", "branches": branches})


def test_values_are_refused():
    for value in (3, [], [[Conv(2)]], [Conv(2), 3], [[Conv], []]):
        with pytest.raises(ValueError, match=r"^Branches: branches"):
            Branches(value)
    deep = Dense(1)
    for _ in range(8):
        deep = Branches([[deep], []])
    with pytest.raises(ValueError, match="at most 8"):
        Branches([[deep], []])


REFUSED = {
    r"cell\[1\], Fuse\(\): .* 5 x 3 none makes 5 x 3; it is given": {
        "encoder": [Branches([[Conv(2)], [Conv(2)]])],
        "cell": [Branches([[Conv(2)], [Conv(2)]]), Fuse()],
    },
    r"cell\[0\], Branches.*has 3 branches, .* not 2; it is given shape \(\(2, 5, 3\), \(3,": {
        "cell": [Branches([[], [], []])]
    },
    r"cell\[0\]\.branches\[1\]\[0\], Dense\(n_units=2\): .*row.* given shape \(3, 3, 2\)": {
        "cell": [Branches([[], [Dense(2)]])]
    },
    r"cell\[0\], Branches.*branches\[0\] gives \(\(1,": {
        "cell": [Branches([[Branches([[Conv(1)], []])], []])]
    },
    r"cell\[0\], Conv.*needs an image.*\(\(2, 5, 3\), \(3, 3, 2\)\)": {"cell": [Conv(2)]},
    r"cell\[0\], GroupNorm.*one image or row": {
        "stability": "none",
        "cell": [GroupNorm(1), Fuse()],
    },
    r"cell\[0\]\.branches\[0\]\[0\], GroupNorm.*contractive": {
        "cell": [Branches([[GroupNorm(1)], []]), Fuse()]
    },
    r"cell must give the shape of the state, .*\(\(2, 5, 3\), \(3, 3, 2\)\).* gives \(\(4,": {
        "cell": [Branches([[Conv(4)], []])]
    },
    r"cell=None .* End encoder with Flatten": {"cell": None},
    r"encoder\[0\], Fuse\(\): it needs several images": {"encoder": [Fuse()]},
    r"monotone": {"stability": "monotone"},
    r"decoder\[0\], Dense.*Flatten": {"decoder": [Dense(2)]},
}


@pytest.mark.parametrize(("message", "how"), REFUSED.items())
def test_refused_with_what_does_not_fit(message, how):
    with pytest.raises(ValueError, match=message):
        DEQClassifier(**{**GIVEN, **how}).fit(X, Y)


def test_what_julia_is_told():
    julia: Any = SimpleNamespace(
        vector=lambda *items: items,
        integers=lambda *items: items,
        strings=lambda *items: items,
        pydeq=SimpleNamespace(
            described_layer=lambda *args: (*args[:-2], dict(zip(*args[-2:], strict=True))),
            described_network=lambda *args: args,
        ),
    )
    encoder, cell, *_ = describe(julia, MODEL)
    assert encoder[0][0][-1]["images"] == ()
    branches, fuse = cell[0]
    assert cell[1:] == ((N_STATE,), (N_STATE,))
    assert branches[:4] == ("Branches", "cell.0", (N_STATE,), (N_STATE,))
    assert branches[-1]["images"] == fuse[-1]["images"] == ((3, 5, 2), (2, 3, 3))
    assert branches[-1]["made"] == ((3, 5, 2), (2, 3, 3))
    assert [[layer[0] for layer in own] for own in branches[-1]["branches"]] == [
        ["Conv", "Activation"],
        ["Residual"],
    ]
    up, down = fuse[-1]["paths"]
    assert up[:3] == (0, 1, 2)
    assert up[3][:4] == ("Conv", "cell.1.0.1", (2, 3, 3), (2, 3, 2))
    assert down[:3] == (1, 0, 2)
    assert down[3][1] == "cell.1.1.0"
