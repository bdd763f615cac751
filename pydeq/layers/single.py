"""Layers that compute by themselves: affine maps, convolutions, activations, norms, pools."""

import numbers
from dataclasses import dataclass
from typing import Literal, final, get_args

from pydeq.layers.base import Layer, check_choice, image, set_integers
from pydeq.shapes import Shape, is_several, n_values

__all__ = ["Activation", "Conv", "Dense", "Flatten", "GroupNorm", "MaxPool", "MeanPool"]

Function = Literal["identity", "logistic", "tanh", "relu"]
Padding = Literal["zero", "circular"]


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
        set_integers(self, "n_units")

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
        set_integers(self, "channels", "kernel_size", "stride")
        check_choice(self, "padding", get_args(Padding))

    def shape(self, given: Shape) -> Shape:
        """See :meth:`Layer.shape`."""
        _, height, width = image(given)
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
        check_choice(self, "name", get_args(Function))

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
        set_integers(self, "groups")
        value = self.epsilon
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not is_number or not 0 < float(value) < float("inf"):
            raise ValueError(f"GroupNorm: epsilon must be a finite number above 0; got {value!r}.")
        object.__setattr__(self, "epsilon", float(value))

    def shape(self, given: Shape) -> Shape:
        """See :meth:`Layer.shape`."""
        if is_several(given):
            raise ValueError("it needs one image or row; in Branches each may have its own")
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
        set_integers(self, "size")

    def shape(self, given: Shape) -> Shape:
        """See :meth:`Layer.shape`."""
        channels, height, width = image(given)
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
    """All values of an image, or of several, in a row: channel by channel, row by row.

    Examples
    --------
    >>> from pydeq.layers import Flatten
    >>> Flatten().shape((16, 7, 7))
    (784,)
    """

    def shape(self, given: Shape) -> Shape:
        """See :meth:`Layer.shape`."""
        return (n_values(given),)
