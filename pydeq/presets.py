"""The two models of the blog posts that pydeq starts from, and two for images of pydeq's own.

In the posts' models everything is set as it was there.

Sources: Q. Wei, F. Schäfer, A. Pal, C. Rackauckas, "Composability in Julia: Implementing Deep
Equilibrium Models via Neural ODEs" (https://julialang.org/blog/2021/10/DEQ/, October 2021), and
J. Pascal, "Deep Equilibrium Models via Neural ODEs". Both solve the steady state of the neural ODE
with Tsit5 and leave the cell as it is (``stability="none"``), which is why it may lose its
equilibrium as it trains: the estimator then warns, and says what helps.

Three things differ from the posts, and none of them is in the mathematics. A sample's search ends
by its own residual; there, by the largest of its batch. Weights come from numpy's generator (in the
same Glorot-uniform distribution). And an equilibrium that was not found is reported.
"""

import math
from typing import Any

import numpy as np

from pydeq.estimators import DEQClassifier, DEQRegressor
from pydeq.layers import (
    Activation,
    Branches,
    Conv,
    Dense,
    Flatten,
    Fuse,
    GroupNorm,
    MaxPool,
)

__all__ = ["double", "double_data", "mnist", "mnist_conv", "mnist_multiscale"]


def double(**overrides: Any) -> DEQRegressor:
    """Return the model that learns y = 2x from ten points.

    The input is the state: no encoder, no decoder. The cell is 1 -> 5 -> 1 without an activation,
    so it is an affine map of slope a, and its equilibrium is ``z* = (a x + b) / (1 - a)``: y = 2x
    is a = 2/3, b = 0. Training is 1000 epochs of Adam (0.05) on the squared error, all ten points
    in a batch, with equilibria searched to 1e-2. It runs all its epochs. Fitted to `double_data`,
    it predicts about -10 for -5, which it has not seen.

    The post minimises the sum of the squares, pydeq their mean: a tenth of it. Adam's steps do not
    depend on that factor.

    A start with a slope above 1 has no stable equilibrium: the search runs away from it, nothing
    can be learned, and `fit` warns and ends. That is one start in eleven (the sum of five products
    of numbers uniform in [-1, 1] is above 1 with probability 0.09). The default `random_state` is
    not one of these; 10 is.

    Parameters
    ----------
    **overrides
        Parameters of `DEQRegressor` to set otherwise, such as ``random_state=1``.

    Returns
    -------
    DEQRegressor
        Not fitted.

    Examples
    --------
    >>> from pydeq import presets
    >>> model = presets.double().fit(*presets.double_data())
    >>> bool(abs(model.predict([[-5.0]])[0] + 10) < 0.2)
    True
    """
    settings: dict[str, Any] = {
        "n_state": None,
        "hidden_layer_sizes": (5,),
        "activation": "identity",
        "abstol": 1e-2,
        "reltol": 1e-2,
        "learning_rate_init": 0.05,
        "batch_size": 10,
        "max_iter": 1000,
        "shuffle": False,
        **_COMMON,
    }
    return DEQRegressor(**{**settings, **overrides})


def double_data() -> tuple[np.ndarray, np.ndarray]:
    """Return the ten points of y = 2x that `double` learns from.

    Returns
    -------
    X : ndarray (10, 1) of float64
        1 to 10.
    y : ndarray (10,) of float64
        2 to 20.

    Examples
    --------
    >>> from pydeq import presets
    >>> X, y = presets.double_data()
    >>> X.shape, y[-1].item()
    ((10, 1), 20.0)
    """
    X = np.arange(1.0, 11.0)[:, np.newaxis]
    return X, 2.0 * X[:, 0]


def mnist(**overrides: Any) -> DEQClassifier:
    """Return the model that learns to read MNIST's digits (:func:`pydeq.datasets.load_mnist`).

    An encoder 784 -> 100, a cell 100 -> 500 (tanh) -> 100, a decoder 100 -> 10; softmax
    cross-entropy, Adam (3e-4), batches of 128, one epoch, equilibria searched to 1e-1.

    The encoder of the original never trains: its cell captures the encoded image in a closure, and
    the steady-state adjoint gives captured variables no gradient. It trains here;
    ``mnist(train_encoder=False)`` is the original.

    At 1e-1 the cell may lose its equilibrium while it trains, because gradients taken at a state
    that is not an equilibrium are wrong: measured in Julia, 64 of the first 400 batches of the
    original did not reach their steady state. ``mnist(abstol=1e-3, reltol=1e-3)`` cures it.

    Parameters
    ----------
    **overrides
        Parameters of `DEQClassifier` to set otherwise, such as ``max_iter=3``.

    Returns
    -------
    DEQClassifier
        Not fitted.

    Examples
    --------
    >>> from pydeq import presets
    >>> presets.mnist(abstol=1e-3, reltol=1e-3).reltol
    0.001
    """
    settings: dict[str, Any] = {
        "n_state": 100,
        "hidden_layer_sizes": (500,),
        "activation": "tanh",
        "train_encoder": True,
        "abstol": 1e-1,
        "reltol": 1e-1,
        "learning_rate_init": 3e-4,
        "batch_size": 128,
        "max_iter": 1,
        "shuffle": True,
        **_COMMON,
    }
    return DEQClassifier(**{**settings, **overrides})


def mnist_conv(**overrides: Any) -> DEQClassifier:
    """Return a convolutional model that learns to read MNIST's digits; it is no model of the posts.

    The encoder is a convolution with kernels of 5 x 5 and one of 3 x 3; after each it keeps the
    largest of 2 x 2 pixels, normalises groups of channels, and has a relu. The state has 32
    channels of 7 x 7. The cell is two convolutions of 3 x 3 with a relu between them. It is
    contractive: every sample has one equilibrium, and a guaranteed bound of its distance to it.

    Parameters
    ----------
    **overrides
        Parameters of `DEQClassifier` to set otherwise, such as ``max_iter=3``.

    Returns
    -------
    DEQClassifier
        Not fitted.

    Examples
    --------
    >>> from pydeq import presets
    >>> presets.mnist_conv().input_shape
    (1, 28, 28)
    """
    settings: dict[str, Any] = {
        "encoder": list(_IMAGE_ENCODER),
        "cell": [Conv(32), Activation("relu"), Conv(32)],
        **_IMAGES,
    }
    return DEQClassifier(**{**settings, **overrides})


def mnist_multiscale(**overrides: Any) -> DEQClassifier:
    """Return a model of MNIST's digits whose state has two resolutions; no model of the posts.

    The encoder begins as that of `mnist_conv`. The state has 32 channels of 7 x 7 pixels and 48 of
    4 x 4, and the input is injected at both. The cell is a convolution of 3 x 3 with a relu at each
    resolution, after which each gets its share of the other (Bai, Koltun and Kolter 2020,
    Multiscale Deep Equilibrium Models). It is contractive.

    It is meant to be trained on images that are moved by whole pixels, an epoch a call:
    ``model.partial_fit(shifted(X, (1, 28, 28), 2, epoch), y)`` with
    :func:`pydeq.datasets.shifted`.

    Parameters
    ----------
    **overrides
        Parameters of `DEQClassifier` to set otherwise, such as ``max_iter=3``.

    Returns
    -------
    DEQClassifier
        Not fitted.

    Examples
    --------
    >>> from pydeq import presets
    >>> presets.mnist_multiscale().encoder[-1].shape((32, 7, 7))
    ((32, 7, 7), (48, 4, 4))
    """
    relu = Activation("relu")
    settings: dict[str, Any] = {
        "encoder": [
            *_IMAGE_ENCODER,
            Branches(((), (Conv(48, stride=2), GroupNorm(4), relu))),
        ],
        "cell": [Branches(((Conv(32), relu), (Conv(48), relu))), Fuse()],
        **_IMAGES,
        "max_iter": 14,
    }
    return DEQClassifier(**{**settings, **overrides})


# What the two of pydeq's own have in common.
_IMAGE_ENCODER = (
    *(Conv(16, 5), MaxPool(2), GroupNorm(4), Activation("relu")),
    *(Conv(32), MaxPool(2), GroupNorm(4), Activation("relu")),
)
_IMAGES: dict[str, Any] = {
    "input_shape": (1, 28, 28),
    "decoder": [Flatten(), Dense(10)],
    "contraction": 0.8,
    "learning_rate_init": 1e-3,
    "alpha": 1e-2,
    "batch_size": 100,
    "max_iter": 16,
    "random_state": 0,
}


# What the two of the posts have in common. They have no weight decay, no averaging and no early
# end, and start alike on every run.
_COMMON: dict[str, Any] = {
    "stability": "none",
    "solver": "tsit5",
    "adjoint": "implicit",
    "alpha": 0.0,
    "average": False,
    "tol": 0.0,
    "n_iter_no_change": math.inf,
    "random_state": 0,
}
