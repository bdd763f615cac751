"""What the figures share: colours, markers and line styles, new axes, and a check of iterates."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

__all__ = ["COLORS", "INK", "LINES", "MARKERS", "check_trajectory", "new_axes"]

# Ten colours told apart with every common colour vision: Petroff 2021, arXiv:2107.02270.
COLORS = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
LINES = ("-", "--", "-.", ":")
INK = "0.15"


def check_trajectory(trajectory: ArrayLike, caller: str) -> np.ndarray:
    """Return the trajectory as an array, after checking its shape."""
    u = np.asarray(trajectory, dtype=float)
    if u.ndim != 3 or u.size == 0:
        raise ValueError(
            f"{caller} needs a trajectory (depth + 1, n, n_state) that is not empty; "
            f"got shape {u.shape}"
        )
    return u


def new_axes(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    """Return `ax`, or the axes of a new figure that leaves room for what stands beside them."""
    return plt.subplots(figsize=figsize, layout="constrained")[1] if ax is None else ax
