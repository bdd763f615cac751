"""Layers as data: what encoder, cell and decoder of a model are made of. No arrays, no engine.

A layer is a frozen description. It knows the shape that it makes of a shape, and the shapes of its
weights. Shapes are those of one sample: ``(n,)`` for values in a row, ``(channels, height, width)``
for images.
"""

import abc
import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

__all__ = [
    "Activation",
    "Conv",
    "Dense",
    "Flatten",
    "GroupNorm",
    "MaxPool",
    "MeanPool",
    "Residual",
]

Shape = tuple[int, ...]
Function = Literal["identity", "logistic", "tanh", "relu"]
Padding = Literal["zero", "circular"]

_LARGEST = 2**31 - 1
_DEEPEST = 8
"""How many residual layers may stand one inside the other."""


class Layer(abc.ABC):
    """What every layer says of itself."""

    @abc.abstractmethod
    def shape(self, given: Shape) -> Shape:
        """Return the shape of what it makes of one sample of the shape `given`.

        Raises
        ------
        ValueError
            If it cannot take that; says what it needs.
        """

    def parameters(self, given: Shape) -> dict[str, Shape]:
        """Return the shapes of its weights by name; most layers have none."""
        return {}


@final
@dataclass(frozen=True)
class Dense(Layer):
    """Affine map ``x @ weight + bias`` of values in a row.

    Parameters
    ----------
    n_units : int
        Number of values that come out.

    Examples
    --------
    >>> from pydeq.layers import Dense
    >>> Dense(10).shape((784,))
    (10,)
    """

    n_units: int

    def __post_init__(self) -> None:
        _set_integers(self, "n_units")

    def shape(self, given: Shape) -> Shape:
        """See :meth:`Layer.shape`."""
        if len(given) != 1:
            raise ValueError("it needs values in a row, shape (n,); a Flatten() before it helps")
        return (self.n_units,)

    def parameters(self, given: Shape) -> dict[str, Shape]:
        """See :meth:`Layer.parameters`: weight ``(n_in, n_out)`` and bias ``(n_out,)``."""
        return {"weight": (*given, self.n_units), "bias": (self.n_units,)}


@final
@dataclass(frozen=True)
class Conv(Layer):
    """Convolution of images, as neural networks have it: a cross-correlation, and a bias a channel.

    The image is padded by ``(kernel_size - 1) // 2`` pixels before it and ``kernel_size // 2``
    after it, so that without a stride it keeps its size. With a stride s, it has every s-th pixel
    of that, from the first.

    Parameters
    ----------
    channels : int
        Number of channels that come out.
    kernel_size : int, default=3
        Height and width of the kernel, at most those of the image.
    stride : int, default=1
    padding : {"zero", "circular"}, default="zero"
        What lies around the image: zeros, or the image again.

    Examples
    --------
    >>> from pydeq.layers import Conv
    >>> Conv(16, stride=2).shape((1, 28, 28))
    (16, 14, 14)
    """

    channels: int
    kernel_size: int = 3
    stride: int = 1
    padding: Padding = "zero"

    def __post_init__(self) -> None:
        _set_integers(self, "channels", "kernel_size", "stride")
        _check_choice(self, "padding", get_args(Padding))

    def shape(self, given: Shape) -> Shape:
        """See :meth:`Layer.shape`."""
        _, height, width = _image(given)
        if self.kernel_size > min(height, width):
            raise ValueError("it needs an image that is not smaller than its kernel")
        return (self.channels, -(-height // self.stride), -(-width // self.stride))

    def parameters(self, given: Shape) -> dict[str, Shape]:
        """See :meth:`Layer.parameters`: weight ``(out, in, height, width)`` and bias ``(out,)``."""
        size = (self.kernel_size, self.kernel_size)
        return {"weight": (self.channels, given[0], *size), "bias": (self.channels,)}


@final
@dataclass(frozen=True)
class Activation(Layer):
    """A function of every value by itself. Each of them is 1-Lipschitz.

    Parameters
    ----------
    name : {"identity", "logistic", "tanh", "relu"}, default="relu"

    Examples
    --------
    >>> from pydeq.layers import Activation
    >>> Activation("tanh").shape((16, 14, 14))
    (16, 14, 14)
    """

    name: Function = "relu"

    def __post_init__(self) -> None:
        _check_choice(self, "name", get_args(Function))

    def shape(self, given: Shape) -> Shape:
        """See :meth:`Layer.shape`."""
        return given


@final
@dataclass(frozen=True)
class GroupNorm(Layer):
    """Bring each group of channels to mean 0 and variance 1, then scale and shift each channel.

    Mean and variance are those of the sample itself (Wu and He 2018), so that an answer does not
    depend on the batch. Values in a row are channels of one pixel each. It has no Lipschitz bound:
    a contractive cell cannot have it.

    Parameters
    ----------
    groups : int
        Number of groups; it divides the number of channels.
    epsilon : float, default=1e-5
        Is added to the variance.

    Examples
    --------
    >>> from pydeq.layers import GroupNorm
    >>> GroupNorm(4).parameters((16, 14, 14))
    {'scale': (16,), 'bias': (16,)}
    """

    groups: int
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        _set_integers(self, "groups")
        value = self.epsilon
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not is_number or not 0 < float(value) < float("inf"):
            raise ValueError(f"GroupNorm: epsilon must be a finite number above 0; got {value!r}.")
        object.__setattr__(self, "epsilon", float(value))

    def shape(self, given: Shape) -> Shape:
        """See :meth:`Layer.shape`."""
        if given[0] % self.groups:
            raise ValueError(f"it needs a number of channels that {self.groups} divides")
        if given[0] == self.groups and len(given) == 1:
            raise ValueError("it needs groups of more than one value, or all become 0")
        return given

    def parameters(self, given: Shape) -> dict[str, Shape]:
        """See :meth:`Layer.parameters`: scale and bias, ``(channels,)``."""
        return {"scale": given[:1], "bias": given[:1]}


@dataclass(frozen=True)
class _Pool(Layer):
    """One value for each square of pixels."""

    size: int = 2

    def __post_init__(self) -> None:
        _set_integers(self, "size")

    def shape(self, given: Shape) -> Shape:
        """See :meth:`Layer.shape`."""
        channels, height, width = _image(given)
        if self.size > min(height, width):
            raise ValueError("it needs an image that is not smaller than what it pools")
        return (channels, height // self.size, width // self.size)


@final
@dataclass(frozen=True)
class MaxPool(_Pool):
    """The largest value of each square of pixels; what is left over at the end is not looked at.

    Parameters
    ----------
    size : int, default=2
        Height and width of a square; the squares do not overlap.

    Examples
    --------
    >>> from pydeq.layers import MaxPool
    >>> MaxPool(2).shape((16, 7, 7))
    (16, 3, 3)
    """


@final
@dataclass(frozen=True)
class MeanPool(_Pool):
    """The mean of each square of pixels; what is left over at the end is not looked at.

    Parameters
    ----------
    size : int, default=2
        Height and width of a square; the squares do not overlap.

    Examples
    --------
    >>> from pydeq.layers import MeanPool
    >>> MeanPool(7).shape((16, 14, 14))
    (16, 2, 2)
    """


@final
@dataclass(frozen=True)
class Flatten(Layer):
    """All values of an image in a row: channel by channel, row by row.

    Examples
    --------
    >>> from pydeq.layers import Flatten
    >>> Flatten().shape((16, 7, 7))
    (784,)
    """

    def shape(self, given: Shape) -> Shape:
        """See :meth:`Layer.shape`."""
        size = 1
        for n in given:
            size *= n
        return (size,)


@final
@dataclass(frozen=True)
class Residual(Layer):
    """What its layers make of x, plus x.

    In a contractive cell the sum is scaled as a weight is: see
    :class:`pydeq.model.spec.ModelSpec`.

    Parameters
    ----------
    layers : sequence of Layer
        Together they keep the shape.

    Examples
    --------
    >>> from pydeq.layers import Activation, Conv, Residual
    >>> Residual([Conv(16), Activation("relu"), Conv(16)]).shape((16, 7, 7))
    (16, 7, 7)
    """

    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        layers: Any = self.layers
        layers = (layers,) if isinstance(layers, Layer) else layers
        if not isinstance(layers, list | tuple) or not layers:
            raise ValueError(f"Residual: layers must be a sequence of layers; got {layers!r}.")
        for place, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise ValueError(f"Residual: layers[{place}] must be a layer; got {layer!r}.")
        object.__setattr__(self, "layers", tuple(layers))
        if _depth(self.layers) >= _DEEPEST:
            raise ValueError(f"Residual: at most {_DEEPEST} may stand one inside the other.")

    def shape(self, given: Shape) -> Shape:
        """See :meth:`Layer.shape`."""
        made = given
        for layer in self.layers:
            made = layer.shape(made)
        if made != given:
            raise ValueError(f"its layers must keep the shape, and they make {made} of it")
        return given


def _depth(layers: Iterable[Layer]) -> int:
    return max((1 + _depth(x.layers) for x in layers if isinstance(x, Residual)), default=0)


def _image(given: Shape) -> Shape:
    if len(given) != 3:
        raise ValueError(
            "it needs an image, shape (channels, height, width); input_shape= says which image a "
            "row of X is"
        )
    return given


def _set_integers(layer: Layer, *names: str) -> None:
    """Check fields that are integers of at least 1, and make Python's of numpy's."""
    for name in names:
        value = getattr(layer, name)
        is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not is_integer or not 1 <= int(value) <= _LARGEST:
            raise ValueError(
                f"{type(layer).__name__}: {name} must be an integer of at least 1 and at most "
                f"2**31 - 1; got {value!r:.100}."
            )
        object.__setattr__(layer, name, int(value))


def _check_choice(layer: Layer, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(layer, name)
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{type(layer).__name__}: {name} must be one of {listed}; got {value!r}.")
    object.__setattr__(layer, name, str(value))
