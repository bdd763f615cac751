"""Architectures that hypothesis makes: each is refused by the layer's name, or trains and is saved.

A few are tried; ``pytest tests/test_random_layers.py --fuzz 500`` tries 500 new ones.
"""

import re
import warnings

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pydeq import ConvergenceWarning, DEQClassifier, load
from pydeq.layers import (
    Activation,
    Branches,
    Conv,
    Dense,
    Flatten,
    Fuse,
    GroupNorm,
    MaxPool,
    MeanPool,
    Residual,
)
from pydeq.shapes import is_several

SHAPE = (1, 5, 4)
X = np.random.default_rng(0).normal(size=(8, 20))
Y = np.array([0, 1] * 4)
SIMPLE = [
    *(Dense(3), Dense(6), Flatten(), Fuse(), GroupNorm(1), GroupNorm(2), MaxPool(2), MeanPool(2)),
    *(Activation(name) for name in ("relu", "tanh", "logistic", "identity")),
    *(
        Conv(channels, size, step, padding)
        for channels in (2, 3)
        for size in (1, 2, 3)
        for step in (1, 2)
        for padding in ("zero", "circular")
    ),
]


def takes(layer, shape):
    try:
        layer.shape(shape)
    except ValueError:
        return False
    return True


@st.composite
def lists_of_layers(draw, shape, most, depth=2):
    """Draw layers, nearly all of which take what they are given."""
    made = []
    for _ in range(draw(st.integers(0, most))):
        kinds = ["simple"] * 4 + (["residual", "branches"] if depth else [])
        kind = draw(st.sampled_from(kinds))
        if kind == "residual":
            inner = draw(lists_of_layers(shape, 2, depth - 1)) or [Activation("tanh")]
            layer = Residual([*inner, *back(inner, shape)])
        elif kind == "branches":
            images = shape if is_several(shape) else (shape,) * draw(st.integers(2, 3))
            layer = Branches([draw(lists_of_layers(image, 2, depth - 1)) for image in images])
        else:
            fits = [layer for layer in SIMPLE if takes(layer, shape)]
            is_any = draw(st.integers(0, 29)) == 0
            layer = draw(st.sampled_from(SIMPLE if is_any else fits))
        made.append(layer)
        if not takes(layer, shape):
            break
        shape = layer.shape(shape)
    return made


def shape_of(layers, shape):
    """Return what layers make of a shape; None: they do not fit."""
    for layer in layers:
        if not takes(layer, shape):
            return None
        shape = layer.shape(shape)
    return shape


def back(layers, shape):
    """Return a layer that brings what `layers` make back to the shape, where one does."""
    made = shape_of(layers, shape)
    if made == shape or made is None:
        return []
    if is_several(shape):
        return [Branches([[Conv(image[0], 1)] if len(image) == 3 else [] for image in shape])]
    return [Dense(shape[0]) if len(shape) == 1 else Conv(shape[0], 1)]


@st.composite
def architectures(draw):
    encoder = draw(lists_of_layers(SHAPE, 3))
    state = shape_of(encoder, SHAPE) or SHAPE
    stability = draw(st.sampled_from(["none", "jacobian", "contractive", "contractive"]))
    cell = draw(lists_of_layers(state, 3)) or [Residual([Activation("tanh")])]
    init = draw(st.sampled_from(["cell", "cell", "zero", "encoder", "layers"]))
    if init == "layers":
        guess = draw(lists_of_layers(state, 1, 1))
        init = [*guess, *back(guess, state)]
    return {
        "encoder": encoder,
        "cell": [*cell, *back(cell, state)],
        "decoder": draw(st.sampled_from([None, [Flatten(), Dense(2)], [Dense(2)]])),
        "init": init,
        "stability": stability,
        "fixed_depth": draw(st.sampled_from([None, None, 2])),
    }


PLACE = re.compile(r"\b(encoder|cell|decoder|init)(\[\d+\]| must|=)")


def failure(model):
    """Return what a fit says where it refuses; None: it ran."""
    try:
        model.fit(X, Y)
    except ValueError as error:
        return str(error)
    return None


@pytest.fixture
def n_architectures(request):
    return request.config.getoption("--fuzz")


def test_each_is_refused_by_name_or_trains_and_is_saved(n_architectures, tmp_path):
    outcomes = []

    @settings(
        max_examples=n_architectures or 5,
        derandomize=not n_architectures,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(architectures())
    def check(how):
        model = DEQClassifier(
            **how,
            input_shape=SHAPE,
            solver="fixed_point",
            max_steps=100,
            max_iter=1,
            random_state=0,
            engine="jax",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            error = failure(model)
            outcomes.append(error)
            if error is not None:
                assert PLACE.search(error), error
                return
            model.save(tmp_path / "model")
            again = load(tmp_path / "model")
            np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
        if len(outcomes) % 40 == 0:
            jax.clear_caches()  # a process has room for so many programs

    check()
    n_fitted = outcomes.count(None)
    print(f"{len(outcomes)} architectures: {n_fitted} trained, {len(outcomes) - n_fitted} refused")
    assert 0 < n_fitted < len(outcomes)
