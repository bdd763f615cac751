"""Models of layers that several tests share, and random ones."""

import numpy as np

from pydeq.layers import (
    Activation,
    Conv,
    Dense,
    Flatten,
    GroupNorm,
    MaxPool,
    MeanPool,
    Residual,
)
from pydeq.model import ModelSpec

BLOCK = Residual([Conv(4), Activation("tanh"), Conv(4, 2, padding="circular")])
HEAD = (MeanPool(2), Flatten(), Dense(3))


ENCODER = (Conv(4, stride=2), Activation("relu"))


def model_of(cell, stability="none", encoder=ENCODER, **changes):
    """Return a model of images (2, 7, 6) and three outputs."""
    given = {"input_shape": (2, 7, 6), "encoder": encoder, "cell": cell, "decoder": HEAD}
    given |= {"n_state": 48, "hidden_layer_sizes": (), "stability": stability}
    return ModelSpec(**{"n_features": 84, "n_outputs": 3, **given, **changes})


MODELS = {
    "convolutions": model_of((Conv(5), Activation("tanh"), Conv(4, 2, padding="circular"))),
    "residual": model_of((GroupNorm(2), BLOCK, Activation("relu"), Conv(4)), "jacobian"),
    "contractive": model_of((BLOCK, Activation("tanh"), Conv(4, 1)), "contractive"),
    "rows": model_of(
        (Dense(6), GroupNorm(2), Activation("logistic"), Dense(9)),
        encoder=(Residual((Conv(2),)), MaxPool(2), GroupNorm(1), Flatten(), Dense(9)),
        decoder=None,
        n_state=9,
    ),
    "dense": model_of(
        (Residual((Dense(9), Activation("tanh"), Dense(9))), Dense(9)),
        "contractive",
        encoder=(Flatten(), Dense(9)),
        decoder=(Dense(3),),
        n_state=9,
    ),
}


def random_layers(rng, n, given):
    """Return layers, most of which can take the shape that they are given, and what they give."""
    made = []
    for _ in range(n):
        for _ in range(10):
            layer = _random_layer(rng, given)
            try:
                given = layer.shape(given)
            except ValueError:
                if rng.random() < 0.97:
                    continue
            made.append(layer)
            break
    return made, given


def random_architecture(rng):
    """Return encoder, cell and decoder for images (1, 6, 6) and two outputs; some do not fit."""
    encoder, state = random_layers(rng, rng.integers(1, 4), (1, 6, 6))
    cell, made = random_layers(rng, rng.integers(1, 3), state)
    cell.append(Dense(state[0]) if len(made) == 1 else Conv(state[0], 1))
    decoder = [Flatten(), Dense(2)]
    return {"input_shape": (1, 6, 6), "encoder": encoder, "cell": cell, "decoder": decoder}


def _random_layer(rng, given):
    kinds = [
        lambda: Dense(int(rng.choice([3, 8]))),
        lambda: Conv(
            int(rng.choice([2, 4])),
            int(rng.choice([1, 2, 3])),
            int(rng.choice([1, 1, 2])),
            str(rng.choice(["zero", "circular"])),
        ),
        lambda: Activation(str(rng.choice(["relu", "tanh"]))),
        lambda: GroupNorm(int(rng.choice([1, 2]))),
        lambda: MaxPool(2),
        lambda: MeanPool(2),
        lambda: Flatten(),
        lambda: Residual([*random_layers(rng, 1, given)[0], Activation("tanh")]),
    ]
    return kinds[rng.choice(len(kinds), p=_ODDS)]()


_ODDS = np.array([3, 5, 3, 1, 1, 1, 2, 1]) / 17
