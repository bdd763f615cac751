"""A cell that is a Lux layer: its parameters, drawn by Lux."""

import functools

import numpy as np

from pydeq.cell_function import CellFunction
from pydeq.engines.julia import runtime
from pydeq.errors import EngineUnavailableError

__all__ = ["PACKAGES", "draw_cell"]

PACKAGES = ("Lux", "Zygote")
"""What a Lux layer takes, beside PyDEQ."""


@functools.lru_cache(16)
def draw_cell(code: str, seed: int) -> CellFunction:
    """Return the cell that Julia code makes; see :func:`pydeq.julia_cell`."""
    julia = runtime.start(
        f"cell is a string, {code!r:.60}, Julia code that makes a Lux layer",
        "layers in a list, cell=[Dense(16), Activation('tanh')], work without Julia",
    )
    with runtime.calling("The cell's Lux layer"):
        if missing := [str(name) for name in julia.load(*PACKAGES)]:
            raise EngineUnavailableError(
                f"A cell that is Julia code needs Julia's {', '.join(missing)}, which its project "
                "does not have. `pydeq julia install` adds them."
            )
        names, arrays = julia.pydeq.draw_parameters(code, seed)
        drawn = [np.array(np.asarray(array).T, np.float64, order="C") for array in arrays]
    return CellFunction(code, dict(zip(map(str, names), drawn, strict=True)))
