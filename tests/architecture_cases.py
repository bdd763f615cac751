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
    return ModelSpec(n_features=84, n_outputs=3, **{**given, **changes})


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


def random_layers(rng, n):
    """Return a few layers of any kind."""
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
        lambda: Residual(random_layers(rng, 2)),
    ]
    return [kinds[rng.choice(len(kinds), p=_ODDS)]() for _ in range(n)]


_ODDS = np.array([3, 5, 3, 1, 1, 1, 2, 1]) / 17
