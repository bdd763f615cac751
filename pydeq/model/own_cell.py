"""The derivative of a cell that is a function: an engine's, since numpy knows nothing of it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["Jvp", "OwnLinearization"]

Jvp = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""An engine's products with df/dz: see :meth:`pydeq.engines.base.AbstractSession.jvp`."""


class OwnLinearization(NamedTuple):
    """The derivative of the cell at the states of n samples."""

    product: Jvp
    x: np.ndarray  # (n, n_features)
    state: np.ndarray  # (n, n_state)

    def at(self, rows: np.ndarray) -> "OwnLinearization":
        """Return those samples."""
        return OwnLinearization(self.product, self.x[rows], self.state[rows])

    def jvp(self, tangent: np.ndarray) -> np.ndarray:
        """Return df/dz t of the tangents t ``(n, n_state)``."""
        return np.asarray(self.product(self.x, self.state, tangent), np.float64)

    def jacobians(self) -> np.ndarray:
        """Return the transposed Jacobians J[k, i, j] = df_j/dz_i, ``(n, n_state, n_state)``."""
        n, width = self.state.shape
        columns = [self.jvp(np.broadcast_to(unit, (n, width))) for unit in np.eye(width)]
        return np.stack(columns, axis=1)

    def rank_bound(self) -> int:
        """Return less than the width: nothing is known, so that the Jacobian may be singular."""
        return self.state.shape[1] - 1
