"""A cell of one's own: a Python function or a Lux layer, for what layers do not cover."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

__all__ = ["CellFunction"]

_TAKEN = ("root", "slope", "skew", "factor")
"""Names that an engine gives to what it computes of weights."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class CellFunction:
    """The cell f(z, h) as a function, with the values that its parameters start from.

    Two of them are equal if their functions are the same and their parameters have the same names
    and shapes.

    Parameters
    ----------
    function : callable or str
        On the JAX engine, ``function(params, u, h)``, which returns f(u, h) of one sample. `u`, `h`
        and what it returns have the shape of the state; `params` is a dict of arrays. It is traced
        and differentiated by JAX, so that it must be pure and made of ``jax.numpy`` and the like.
        On the Julia engine, Julia code that makes a Lux layer; see :func:`pydeq.julia_cell`.
    params : dict of str to array-like
        Where each parameter starts, by name. The L2 penalty `alpha` is on one called ``weight``.

    Raises
    ------
    ValueError
        If one of them cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> from pydeq import CellFunction
    >>> def cell(params, u, h):
    ...     return params["size"] * (u + h)
    >>> CellFunction(cell, {"size": 0.5})
    CellFunction(cell, size: ())
    """

    function: Callable[[dict[str, Any], Any, Any], Any] | str
    params: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not callable(self.function) and not isinstance(self.function, str):
            raise ValueError(
                "CellFunction: function must be callable as function(params, u, h), or Julia code; "
                f"got {self.function!r:.100}."
            )
        if not isinstance(self.params, Mapping) or not self.params:
            raise ValueError(
                "CellFunction: params must be a dict with at least one array by name; got "
                f"{self.params!r:.100}."
            )
        checked = {
            name: _checked(name, value, self.is_julia) for name, value in self.params.items()
        }
        object.__setattr__(self, "params", dict(sorted(checked.items())))

    @property
    def is_julia(self) -> bool:
        """Whether it is Julia code, which the Julia engine alone can use."""
        return isinstance(self.function, str)

    @property
    def name(self) -> str:
        """What the function is called; of Julia code, its beginning."""
        if isinstance(self.function, str):
            return f"{self.function:.60}"
        return str(getattr(self.function, "__qualname__", type(self.function).__qualname__))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter by name."""
        return {name: value.shape for name, value in self.params.items()}

    @property
    def digest(self) -> str:
        """A digest of the values that the parameters start from."""
        content = b"".join(np.float64(value).tobytes() for value in self.params.values())
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CellFunction):
            return NotImplemented
        return self.function == other.function and self.shapes == other.shapes

    def __hash__(self) -> int:
        return hash((self.function, tuple(self.shapes.items())))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {shape}" for name, shape in self.shapes.items())
        return f"CellFunction({self.name}, {shapes})"


def _checked(name: Any, value: Any, is_julia: bool) -> np.ndarray:
    # Lux's parameters are in a tree.
    parts = str(name).split(".") if is_julia else [str(name)]
    is_name = isinstance(name, str) and all(map(str.isidentifier, parts))
    if not is_name or parts[-1] in _TAKEN:
        raise ValueError(
            "CellFunction: a parameter's name must be an identifier and none of "
            f"{', '.join(_TAKEN)}; got {name!r:.100}."
        )
    array = np.array(value)
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise ValueError(
            f"CellFunction: the parameter {name} must be an array of finite real numbers; got "
            f"{value!r:.100}."
        )
    return array
