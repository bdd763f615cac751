"""What every layer says of itself, and the checks that they share.

A layer is a frozen description. It knows the shape that it makes of a shape, and the shapes of its
weights.
"""

import abc
import numbers

from pydeq.shapes import Shape, is_several

__all__ = [
    "LARGEST",
    "Layer",
    "check_choice",
    "image",
    "set_integers",
]

LARGEST = 2**31 - 1


class Layer(abc.ABC):
    """What every layer says of itself.

    Examples
    --------
    >>> from pydeq.layers import Dense, Layer
    >>> isinstance(Dense(3), Layer)
    True
    """

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


def image(given: Shape) -> tuple[int, int, int]:
    """Return the shape of an image, or raise ValueError."""
    if len(given) != 3 or is_several(given):
        raise ValueError(
            "it needs an image, shape (channels, height, width); input_shape= says which image a "
            "row of X is"
        )
    channels, height, width = given
    return channels, height, width


def set_integers(layer: Layer, *names: str) -> None:
    """Check fields that are integers of at least 1, and make Python's of numpy's."""
    for name in names:
        value = getattr(layer, name)
        is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not is_integer or not 1 <= int(value) <= LARGEST:
            raise ValueError(
                f"{type(layer).__name__}: {name} must be an integer of at least 1 and at most "
                f"2**31 - 1; got {value!r:.100}."
            )
        object.__setattr__(layer, name, int(value))


def check_choice(layer: Layer, name: str, choices: tuple[str, ...]) -> None:
    """Check a field that is one of some names."""
    value = getattr(layer, name)
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{type(layer).__name__}: {name} must be one of {listed}; got {value!r}.")
    object.__setattr__(layer, name, str(value))
