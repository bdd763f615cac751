"""The results of ``equilibrium``, block by block: in memory, or written to arrays of the caller."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from pydeq.model import Equilibrium, ModelSpec, joined

__all__ = ["Results"]

_FIELDS = ("state", "output", "residual", "n_evals", "converged")


class Results:
    """Equilibria as they come.

    Parameters
    ----------
    out : mapping of str to array
        Where to write the fields that it names.
    """

    def __init__(self, out: Mapping[str, Any]) -> None:
        if not isinstance(out, Mapping):
            raise ValueError(
                f"out must be a dict of arrays by the names of fields, {', '.join(_FIELDS)}; got "
                f"{type(out).__name__}."
            )
        self._out = out
        self._parts: list[Equilibrium] = []

    def check(self, n_samples: int, model: ModelSpec, dtype: np.dtype) -> None:
        """Raise ValueError where an array is not what its field needs."""
        widths = {"state": (model.state_width,), "output": (model.n_outputs,)}
        dtypes = {"n_evals": np.dtype("i8"), "converged": np.dtype("?")}
        for name, array in self._out.items():
            if name not in _FIELDS:
                raise ValueError(f"out takes {', '.join(_FIELDS)}; got {name!r}.")
            shape, needs = (n_samples, *widths.get(name, ())), dtypes.get(name, dtype)
            found: Any = getattr(array, "dtype", None)
            fits = isinstance(found, np.dtype) and np.can_cast(needs, found, "safe")
            if not fits or array.shape != shape:
                raise ValueError(
                    f"out[{name!r}] must be an array of shape {shape} that holds {needs}; got "
                    f"shape {getattr(array, 'shape', None)} and dtype {found}."
                )

    def take(self, rows: slice, part: Equilibrium) -> None:
        """Take in the equilibria of `rows`."""
        for name, array in self._out.items():
            array[rows] = getattr(part, name)
        # What was written is not kept.
        nothing = {name: getattr(part, name)[:0] for name in self._out}
        self._parts.append(dataclasses.replace(part, **nothing))

    def whole(self) -> Equilibrium:
        """Return all of them."""
        return dataclasses.replace(joined(self._parts), **self._out)
