"""Shapes and names of layers in their places, and what a layer refuses."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.signal
from architecture_cases import BLOCK, MODELS

from pydeq import layers
from pydeq.estimators.layer_json import layer_from_json, layer_to_json
from pydeq.layers import Activation, Conv, Dense, Flatten, GroupNorm, MaxPool, MeanPool, Residual
from pydeq.model import ModelSpec, init_params, parameter_shapes
from pydeq.model.forward import forward
from pydeq.model.network import place


def test_names_count_the_layers_that_have_weights():
    shapes = parameter_shapes(MODELS["residual"])
    assert shapes == {
        "encoder.weight": (4, 2, 3, 3),
        "encoder.bias": (4,),
        "cell.0.scale": (4,),
        "cell.0.bias": (4,),
        "cell.1.0.weight": (4, 4, 3, 3),
        "cell.1.0.bias": (4,),
        "cell.1.1.weight": (4, 4, 2, 2),
        "cell.1.1.bias": (4,),
        "cell.2.weight": (4, 4, 3, 3),
        "cell.2.bias": (4,),
        "decoder.weight": (8, 3),
        "decoder.bias": (3,),
    }
    assert list(parameter_shapes(MODELS["rows"]))[:6] == [
        *("encoder.0.0.weight", "encoder.0.0.bias", "encoder.1.scale", "encoder.1.bias"),
        *("encoder.2.weight", "encoder.2.bias"),
    ]


def test_the_models_that_pydeq_names_are_layers_too():
    network = ModelSpec(4, 2, 3, (5,), "tanh").network
    assert [placed.layer for placed in network.encoder] == [Dense(3)]
    assert [placed.layer for placed in network.cell] == [Dense(5), Activation("tanh"), Dense(3)]
    assert [placed.layer for placed in network.decoder] == [Dense(2)]
    assert ModelSpec(2, 2, None, ()).network.encoder == ()


def test_a_start_has_the_variance_of_glorot():
    params = init_params(MODELS["residual"], np.random.default_rng(0), np.dtype("f8"))
    limit = np.sqrt(6 / (9 * (2 + 4)))
    assert 0.95 * limit < np.abs(params["encoder.weight"]).max() <= limit
    assert (params["cell.0.scale"] == 1).all()
    assert not params["cell.0.bias"].any()


@pytest.mark.parametrize("padding", ["zero", "circular"])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_convolution_is_scipys(padding, size):
    part, gives = place("cell", (Conv(2, size, 2, padding),), (3, 6, 5))
    rng = np.random.default_rng(0)
    weight, bias, a = (
        rng.normal(size=(2, 3, size, size)),
        rng.normal(size=2),
        rng.normal(size=(3, 6, 5)),
    )
    found = forward(part, {"cell.0.weight": weight, "cell.0.bias": bias}, a[None])[0]
    sides = ((size - 1) // 2, size // 2)
    mode = "wrap" if padding == "circular" else "constant"
    padded = np.pad(a, ((0, 0), sides, sides), mode)
    expected = [
        sum(scipy.signal.correlate2d(padded[i], w[i], "valid") for i in range(3)) + b
        for w, b in zip(weight, bias, strict=True)
    ]
    assert found.shape == gives
    np.testing.assert_allclose(found, np.array(expected)[:, ::2, ::2], atol=1e-12)


@pytest.mark.parametrize(
    "layer", [Dense(3), Conv(2, 1), MeanPool(3), Flatten(), GroupNorm(2, 1e-3), BLOCK, MaxPool(4)]
)
def test_json_and_back(layer):
    assert layer_from_json(json.loads(json.dumps(layer_to_json(layer)))) == layer


def test_json_that_is_no_layer_is_refused():
    deep = layer_to_json(Dense(1))
    for _ in range(500):
        deep = {"layer": "Residual", "layers": [deep]}
    given = layer_to_json(Conv(3))
    bad = [3, None, {}, {"layer": "os.system"}, {"layer": ["Conv"]}, {**given, "more": 1}, deep]
    bad += [{**given, "channels": 0}, {**given, "padding": "x"}, {"layer": "Residual", "layers": 3}]
    for value in bad:
        with pytest.raises(ValueError, match=r"layer|Conv"):
            layer_from_json(value)


REFUSED = [
    *[lambda v=v: Dense(v) for v in (0, -1, 1.5, True, "3", None, 2**31)],
    *[lambda v=v: Conv(3, v) for v in (0, (3, 3))],
    lambda: Conv(3, stride=0),
    lambda: Conv(3, padding="same"),
    lambda: Activation("gelu"),
    *[lambda v=v: GroupNorm(1, v) for v in (0, np.inf, "small")],
    lambda: MaxPool(0),
    lambda: MeanPool(None),
    *[lambda v=v: Residual(v) for v in ([], 3, [3], [Conv])],
]


@pytest.mark.parametrize("make", REFUSED)
def test_values_are_refused(make):
    with pytest.raises(
        ValueError, match=r"^(Dense|Conv|Activation|GroupNorm|MaxPool|MeanPool|Res)"
    ):
        make()


def _is_layer(kind):
    return isinstance(kind, type) and issubclass(kind, layers.Layer) and kind is not layers.Layer


def test_a_layer_is_a_value():
    kinds = [kind for kind in map(vars(layers).get, layers.__all__) if _is_layer(kind)]
    assert len(kinds) > 9
    for kind in kinds:
        assert dataclasses.is_dataclass(kind)
    assert Conv(np.int64(3)) == Conv(3)
    assert type(Conv(np.int64(3)).channels) is int
    assert hash(Residual([Conv(3)])) == hash(Residual((Conv(3),)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Dense(3).n_units = 4
    deep = Dense(1)
    for _ in range(8):
        deep = Residual(deep)
    with pytest.raises(ValueError, match="at most 8"):
        Residual(deep)
