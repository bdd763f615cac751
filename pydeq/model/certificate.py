"""What is known of a state that a solver returned: whether it is stable, how far off at most.

All in numpy float64 by `pydeq.model.cell`, in which the model is exact: an engine's rounding counts
as residual. Of a cell that is a function an engine computes the derivative. To add a cell, say in
`_distance_bound` what it guarantees.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse.linalg

from pydeq.cell_function import CellFunction
from pydeq.model.arnoldi import LOOKS, rightmost_eigenvalues
from pydeq.model.cell import AnyLinearization, Cell, acting_cell, linearize, rounding
from pydeq.model.equilibrium import Certificates, Equilibrium
from pydeq.model.monotone import MonotoneConv
from pydeq.model.own_cell import Jvp, OwnLinearization
from pydeq.model.params import Params
from pydeq.model.spec import ModelSpec

__all__ = [
    "certify",
    "contraction_distance_bound",
    "distance_bound",
    "monotone_distance_bound",
    "spectral_abscissa",
]

DENSE = 64
"""Widest state whose Jacobian's eigenvalues are all computed: about 1 ms a sample at this width."""

ARNOLDI_TOL = 1e-6
"""Residual of the eigenvalue of a wider state, relative to its size."""

ARPACK_NCV, ARPACK_RESTARTS, ARPACK_TOL = 30, 20, 1e-6
"""Size of the Krylov space for wider states, how often it is restarted, relative tolerance."""

CHUNK_BYTES = 2**26
"""Memory that a dense Jacobian of each sample of a chunk may take."""

_Derivative = AnyLinearization | OwnLinearization


def certify(
    model: ModelSpec,
    params: Params,
    x: np.ndarray,
    found: Equilibrium,
    jvp: Jvp | None = None,
) -> Equilibrium:
    """Return `found` with the certificates of its states.

    Parameters
    ----------
    model : ModelSpec
    params : dict of str to ndarray
    x : ndarray (n, n_features)
        The samples that `found` belongs to.
    found : Equilibrium
    jvp : callable, optional
        See `spectral_abscissa`.
    """
    certificates = Certificates(
        spectral_abscissa=spectral_abscissa(model, params, x, found.state, jvp),
        distance_bound=distance_bound(model, params, x, found.state),
    )
    return dataclasses.replace(found, certificates=certificates)


def spectral_abscissa(
    model: ModelSpec,
    params: Params,
    x: np.ndarray,
    state: np.ndarray,
    jvp: Jvp | None = None,
) -> np.ndarray:
    """Return the largest real part of the eigenvalues of df/dz - I at each state.

    Where it is negative at an equilibrium, the neural ODE du/dt = f(u, h) - u returns there after
    any small disturbance; where it is positive, almost no small disturbance dies out. The unit is
    that of 1 / t.

    An estimate: up to a width of 64 exact up to rounding (LAPACK's dense eigenvalues); above, the
    largest real part of the Ritz values of Arnoldi's method (Saad 2011, chapter 6), whose residual
    is at most 1e-6 of it, from the same start for every sample. A Ritz value lies in the Jacobian's
    field of values: where the Jacobian is normal, the estimate is from below. In a crowd of
    eigenvalues the next may be taken for the rightmost (0.003 off has been seen). Where that does
    not converge it is ARPACK's, with restarts, to 1e-6, and where that does not, LAPACK's.

    The Jacobian of a cell that is a function is what `jvp` gives, in the engine's precision. Its
    rank is not known: for states wider than 64, where an eigenvalue 0 of df/dz may go unseen, the
    estimate is at least -1.

    Parameters
    ----------
    model : ModelSpec
    params : dict of str to ndarray
    x : ndarray (n, n_features)
    state : ndarray (n, n_state)
        Where the Jacobian is taken, an equilibrium or not.
    jvp : callable, optional
        :meth:`pydeq.engines.base.AbstractSession.jvp` of a session on `params`; a cell that is a
        function needs it, and no other uses it.

    Returns
    -------
    ndarray of float64 (n,)
        NaN where the state or the Jacobian is not finite, and for a cell that is a function without
        `jvp`.

    References
    ----------
    Y. Saad (2011). Numerical Methods for Large Eigenvalue Problems. 2nd edition, SIAM.
    R. Lehoucq, D. Sorensen, C. Yang (1998). ARPACK Users' Guide. SIAM.
    S. Bai, V. Koltun, J. Z. Kolter (2021). Stabilizing Equilibrium Models by Jacobian
    Regularization. ICML.
    """
    abscissa, width = np.full(len(state), np.nan), model.state_width
    linearized = _linearizing(model, params, jvp)
    if linearized is None:
        return abscissa
    for part in _chunks(model, len(state)):
        here = linearized(x[part], state[part])
        with np.errstate(over="ignore", invalid="ignore"):
            along = here.jvp(np.ones((len(state[part]), width)))
        finite = np.flatnonzero(np.isfinite(np.hstack([state[part], along])).all(axis=1))
        if width <= DENSE:
            largest = np.linalg.eigvals(here.at(finite).jacobians()).real.max(axis=1)
        else:
            largest = _rightmost_of_wide(here.at(finite), len(finite), width)
        abscissa[part.start + finite] = largest - 1
    return abscissa


def distance_bound(
    model: ModelSpec, params: Params, x: np.ndarray, state: np.ndarray
) -> np.ndarray:
    """Return a guaranteed bound of each state's distance ``||z - z*||_2`` to the equilibrium z*.

    z* is that of the model with these weights in exact arithmetic. The bound is
    ``(||f(z) - z||_2 + e) / (1 - q)``, with q the bound of the cell's Lipschitz constant (the
    product of its weights' spectral norms as they act and of its activations' constants, and at
    most ``contraction`` with ``stability="contractive"``), and e the rounding of f(z) here; for the
    monotone cell that of `monotone_distance_bound`.

    Parameters
    ----------
    model : ModelSpec
    params : dict of str to ndarray
    x : ndarray (n, n_features)
    state : ndarray (n, n_state)

    Returns
    -------
    ndarray of float64 (n,)
        In the unit of the state. inf where nothing is guaranteed: where q is not below 1, which
        cannot be with ``stability="contractive"`` and does not matter with ``"monotone"``; where
        the state is not finite; with a finite horizon, whose states are not meant to be equilibria;
        for a cell that is a function.
    """
    bound = np.full(len(state), np.inf)
    if model.horizon is not None or isinstance(model.cell, CellFunction):
        return bound
    cell = acting_cell(model, params)
    for part in _chunks(model, len(state)):
        here = linearize(model, params, cell, x[part], state[part])
        bound[part] = _distance_bound(model, here, state[part].astype(np.float64))
    return np.where(np.isfinite(bound), bound, np.inf)


def contraction_distance_bound(
    z: np.ndarray, fz: np.ndarray, lipschitz: float, error: np.ndarray | float = 0.0
) -> np.ndarray:
    """Return ``(||f(z) - z||_2 + error) / (1 - lipschitz)``, inf unless ``lipschitz < 1``.

    ``||z - z*|| <= ||z - f(z)|| + ||f(z) - f(z*)|| <= ||z - f(z)|| + q ||z - z*||`` (Banach).

    Parameters
    ----------
    z, fz : ndarray (n, n_state)
        States and the cell's values there.
    lipschitz : float
        Upper bound q of the cell's Lipschitz constant.
    error : ndarray (n,) or float
        Bound of the error of `fz`, in the Euclidean norm.

    Returns
    -------
    ndarray (n,)
    """
    if not lipschitz < 1:
        return np.full(len(z), np.inf)
    return (np.linalg.norm(fz - z, axis=1) + error) / (1 - lipschitz)


def monotone_distance_bound(
    weight: np.ndarray,
    z: np.ndarray,
    fz: np.ndarray,
    monotonicity: float,
    error: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Return the bound of ``||z - z*||_2`` for ``f(z) = act(z @ weight + h + b)``.

    It needs ``v @ (I - weight) @ v >= monotonicity * ||v||^2`` for every v (Winston and Kolter
    2020, section 3), and an activation that is monotone and 1-Lipschitz, as all of
    :data:`pydeq.model.spec.ACTIVATIONS` are: it is then the proximal operator of a convex phi.

    Proof. With y = f(z) = prox(z W + h + b), the definition of prox puts (z W + h + b) - y into
    dphi(y), so that F(y) = y (I - W) - h - b + dphi(y) contains (z - y) W, while F(z*) contains 0.
    F is strongly monotone, so m ||y - z*||^2 <= <(z - y) W, y - z*>, and by Cauchy and Schwarz
    ||y - z*|| <= ||(z - y) W|| / m; the triangle inequality adds ||z - y||.

    Parameters
    ----------
    weight : ndarray (n_state, n_state)
        W as it acts.
    z, fz : ndarray (n, n_state)
        States and the cell's values there.
    monotonicity : float
        m > 0.
    error : ndarray (n,) or float
        Bound of the error of `fz`, in the Euclidean norm.

    Returns
    -------
    ndarray (n,)

    References
    ----------
    E. Winston, J. Z. Kolter (2020). Monotone Operator Equilibrium Networks. NeurIPS.
    """
    gap = z - fz
    norm = float(np.linalg.norm(weight))  # ||W||_F, which bounds ||W||_2
    return _monotone_bound(gap, gap @ weight, norm, monotonicity, error)


def _monotone_bound(
    gap: np.ndarray,
    product: np.ndarray,
    norm: float,
    monotonicity: float,
    error: np.ndarray | float,
) -> np.ndarray:
    """Return the bound of `monotone_distance_bound` from z - f(z) and its product with W."""
    # An error of y moves both terms; `norm` bounds what it becomes in the second.
    added = error * (1 + norm / monotonicity)
    return np.linalg.norm(gap, axis=1) + np.linalg.norm(product, axis=1) / monotonicity + added


def _chunks(model: ModelSpec, n: int) -> Iterator[slice]:
    # Of wider states a Krylov space is kept, and one Jacobian at a time is formed.
    width = model.state_width if model.state_width <= DENSE else LOOKS[-1]
    n_chunk = max(1, CHUNK_BYTES // (8 * width * max(model.cell_widths)))
    return (slice(start, start + n_chunk) for start in range(0, n, n_chunk))


def _distance_bound(model: ModelSpec, here: AnyLinearization, z: np.ndarray) -> np.ndarray:
    """Return the bound that the kind of cell guarantees, ``(n,)``; it may be NaN."""
    cell = here.cell
    unit = rounding(model)
    if model.stability == "monotone" and isinstance(cell, Cell):
        (weight,) = cell.weights
        with np.errstate(over="ignore", invalid="ignore"):
            gap = np.linalg.norm(z - here.value, axis=1) + here.error
            bound = monotone_distance_bound(weight, z, here.value, 1.0, here.error)
            return (1 + unit) * (bound + cell.composing * gap)
    if isinstance(cell, MonotoneConv):
        with np.errstate(over="ignore", invalid="ignore"):
            gap = z - here.value
            pushed, norm = cell.product(gap), cell.norm
            bound = _monotone_bound(gap, pushed, norm, 1.0, here.error)
            # W is known to `composing`, and its product here to as much as any of such a size.
            size = np.linalg.norm(gap, axis=1) + here.error
            return (1 + unit) * (bound + (cell.composing + unit * cell.size) * size)
    lipschitz = cell.lipschitz
    if model.stability == "contractive":
        lipschitz = min(lipschitz, model.contraction)
    with np.errstate(over="ignore", invalid="ignore"):
        bound = contraction_distance_bound(z, here.value, lipschitz, here.error)
    return (1 + unit) * bound


def _linearizing(
    model: ModelSpec, params: Params, jvp: Jvp | None
) -> Callable[[np.ndarray, np.ndarray], _Derivative] | None:
    """Return what takes the cell's derivative at samples and states; None: nothing is known."""
    if isinstance(model.cell, CellFunction):
        return None if jvp is None else functools.partial(OwnLinearization, jvp)
    cell = acting_cell(model, params)
    # It bounds the norm of every Jacobian; layers may have none.
    named = isinstance(cell, Cell | MonotoneConv)
    if np.isnan(cell.lipschitz) or (named and np.isinf(cell.lipschitz)):
        return None
    return functools.partial(linearize, model, params, cell)


def _rightmost_of_wide(here: _Derivative, n: int, width: int) -> np.ndarray:
    """Return the largest real part of the eigenvalues of df/dz at each of n samples."""
    start = np.random.default_rng(0).normal(size=width)
    largest = rightmost_eigenvalues(
        lambda rows, v: here.at(rows).jvp(v) if len(rows) < n else here.jvp(v),
        start,
        n,
        ARNOLDI_TOL,
    )
    for k in range(n):
        one = here.at(np.array([k]))
        if np.isnan(largest[k]):
            largest[k] = _rightmost(one, width)
        # A Krylov space lies in the range of the Jacobian, so it never shows the eigenvalue 0.
        elif one.rank_bound() < width:
            largest[k] = max(largest[k], 0.0)
    return largest


def _rightmost(here: _Derivative, width: int) -> float:
    """Return the largest real part of the eigenvalues of df/dz at one sample, by ARPACK."""
    sparse: Any = scipy.sparse.linalg  # it has no types, and pyright guesses wrong ones
    operator = sparse.LinearOperator(
        (width, width), matvec=lambda t: here.jvp(t.reshape(1, -1))[0], dtype=np.float64
    )
    start = np.random.default_rng(0).normal(size=width)
    try:
        values = sparse.eigs(
            operator,
            k=1,
            which="LR",
            ncv=ARPACK_NCV,
            v0=start,
            maxiter=ARPACK_RESTARTS,
            tol=ARPACK_TOL,
            return_eigenvectors=False,
        )
    except sparse.ArpackError:  # not converged, or a Jacobian that is zero
        values = np.linalg.eigvals(here.jacobians()[0])
    largest = values.real.max()
    # A Krylov space lies in the range of the Jacobian, so it never shows the eigenvalue 0.
    return max(largest, 0.0) if here.rank_bound() < width else largest
