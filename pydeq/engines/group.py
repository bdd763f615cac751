"""The processes that work on one fit, and what they tell each other beside gradients."""

import abc
import json
from typing import Any, final

import numpy as np

__all__ = ["AbstractGroup", "Alone", "gather_arrays", "gather_json"]


class AbstractGroup(abc.ABC):
    """The processes of a fit; every one of them makes the same calls in the same order.

    Attributes
    ----------
    rank : int
        The number of this process, from 0.
    size : int
        Number of processes.
    """

    rank: int
    size: int

    @abc.abstractmethod
    def gather(self, content: bytes) -> list[bytes]:
        """Return what each process gave, in the order of their ranks."""


@final
class Alone(AbstractGroup):
    """A single process."""

    rank, size = 0, 1

    def gather(self, content: bytes) -> list[bytes]:
        """See :meth:`AbstractGroup.gather`."""
        return [content]


def gather_json(group: AbstractGroup, value: Any) -> list[Any]:
    """Return a value of each process; JSON holds them."""
    return [json.loads(found) for found in group.gather(json.dumps(value).encode())]


def gather_arrays(group: AbstractGroup, array: np.ndarray) -> list[np.ndarray]:
    """Return an array of each process, all of one dtype and, but for the first axis, one shape."""
    parts = group.gather(np.ascontiguousarray(array).tobytes())
    rest = array.shape[1:] if array.ndim else ()
    shape = (-1, *rest) if array.ndim else ()
    return [np.frombuffer(part, array.dtype).reshape(shape) for part in parts]
