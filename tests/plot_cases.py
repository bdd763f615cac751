"""What is read off a figure."""

import numpy as np


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def offsets(dots):
    """The points of a scatter, (n, 2), which matplotlib keeps as a masked array."""
    return np.asarray(dots.get_offsets())


def shapes(ax):
    """The distinct markers of the scatters."""
    return {dots.get_paths()[0].vertices.tobytes() for dots in ax.collections}
