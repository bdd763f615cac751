"""How a model's layers are said to Julia: names and numbers, shapes the other way round."""

import dataclasses
from types import SimpleNamespace
from typing import Any

from architecture_cases import MODELS

from pydeq.engines.julia.layers import describe
from pydeq.layers import Dense
from pydeq.model import ModelSpec


def said(model):
    """Return what Julia is told, as nested tuples."""
    julia: Any = SimpleNamespace(
        vector=lambda *items: items,
        integers=lambda *items: items,
        strings=lambda *items: items,
        pydeq=SimpleNamespace(
            described_layer=lambda *args: (*args[:-2], dict(zip(*args[-2:], strict=True))),
            described_network=lambda *args: args,
        ),
    )
    return describe(julia, model)


def test_what_is_said_of_each_layer():
    encoder, cell, decoder, init = said(MODELS["contractive"])
    conv, relu = encoder[0]
    assert encoder[1:] == ((6, 7, 2), (3, 4, 4))
    as_given = {"kernel_size": 3, "stride": 2, "padding": "zero"}
    assert conv == ("Conv", "encoder", (6, 7, 2), (3, 4, 4), as_given)
    assert (relu[0], relu[-1]) == ("Activation", {"activation": "relu"})
    assert cell[1] == cell[2] == (3, 4, 4)
    block = cell[0][0]
    assert block[:2] == ("Residual", "cell.0")
    assert [inner[1] for inner in block[-1]["layers"]] == ["cell.0.0", "cell.0.1", "cell.0.1"]
    assert [layer[0] for layer in decoder[0]] == ["MeanPool", "Flatten", "Dense"]
    assert decoder[0][0][-1] == {"size": 2}
    assert init is None
    assert said(MODELS["residual"])[1][0][0][-1] == {"groups": 2, "epsilon": 1e-5}


def test_a_dense_cell_stays_what_it_is_in_other_models():
    model = dataclasses.replace(MODELS["rows"], cell=None)
    assert said(model)[1] is None


def test_a_first_guess_is_said_alone():
    model = ModelSpec(3, 2, 4, (5,), init=(Dense(4),))
    encoder, cell, decoder, init = said(model)
    assert encoder is cell is decoder is None
    assert init == ((("Dense", "init", (4,), (4,), {}),), (4,), (4,))
    assert said(dataclasses.replace(model, init="zero")) is None
