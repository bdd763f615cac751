"""What is known of a state that a solver returned: whether it is stable, how far off at most.

All in numpy float64 from the stored weights, whatever the engine and the dtype of the model, so
that an engine is checked by something that is not itself. The model is taken in exact arithmetic:
an engine's rounding, that of its scaling of a contractive cell included, counts as residual.

To add a cell, say in `_cell` which layers it has, in `_injected` how h enters the first of them,
and in `_distance_bound` what is guaranteed.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse.linalg
import scipy.special

from pydeq.model.equilibrium import Certificates, Equilibrium
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

ARPACK_NCV, ARPACK_RESTARTS, ARPACK_TOL = 30, 20, 1e-6
"""Size of the Krylov space for wider states, how often it is restarted, relative tolerance."""

CHUNK_BYTES = 2**26
"""Memory that a dense Jacobian of each sample of a chunk may take."""

SCHATTEN_P = 128
"""||G^32||_F^(1/64) with G = W^T W is the Schatten norm of W of this order (see `ModelSpec`)."""

# Value, derivative as a function of the value, and Lipschitz constant.
_ACTIVATIONS = {
    "identity": (lambda v: v, None, 1.0),
    "logistic": (scipy.special.expit, lambda a: a * (1 - a), 0.25),
    "tanh": (np.tanh, lambda a: 1 - a**2, 1.0),
    "relu": (lambda v: np.maximum(v, 0), lambda a: (a > 0).astype(a.dtype), 1.0),
}


class _Cell(NamedTuple):
    """Layers ``a_(i+1) = activation_i(a_i @ W_i + b_i)`` in float64, as they act."""

    weights: list[np.ndarray]  # W_i (n_in, n_out)
    biases: list[np.ndarray]  # b_i (n_out,)
    activations: list[str]
    norms: list[float]  # upper bounds of ||W_i||_2
    composing: float = 0.0  # bound of the rounding error of W_0, ||.||_2, where it is composed


class _Linear(NamedTuple):
    """The cell at the points (z, h) of n samples, and its derivative there."""

    cell: _Cell
    value: np.ndarray  # f(z, h) (n, n_state)
    error: np.ndarray  # bound of the value's rounding error, ||.||_2 (n,)
    slopes: list[np.ndarray | None]  # derivatives of the activations (n, n_out); None: 1

    def at(self, rows: np.ndarray) -> "_Linear":
        """Return those samples."""
        slopes = [None if slope is None else slope[rows] for slope in self.slopes]
        return _Linear(self.cell, self.value[rows], self.error[rows], slopes)

    def jvp(self, tangent: np.ndarray) -> np.ndarray:
        """Return df/dz t of the tangents t ``(n, n_state)``, or of k each, ``(n, k, n_state)``."""
        for weight, slope in zip(self.cell.weights, self.slopes, strict=True):
            tangent = tangent @ weight
            if slope is not None:
                tangent = tangent * (slope if tangent.ndim == 2 else slope[:, None, :])
        return tangent


def certify(model: ModelSpec, params: Params, x: np.ndarray, found: Equilibrium) -> Equilibrium:
    """Return `found` with the certificates of its states.

    Parameters
    ----------
    model : ModelSpec
    params : dict of str to ndarray
    x : ndarray (n, n_features)
        The samples that `found` belongs to.
    found : Equilibrium
    """
    certificates = Certificates(
        spectral_abscissa=spectral_abscissa(model, params, x, found.state),
        distance_bound=distance_bound(model, params, x, found.state),
    )
    return dataclasses.replace(found, certificates=certificates)


def spectral_abscissa(
    model: ModelSpec, params: Params, x: np.ndarray, state: np.ndarray
) -> np.ndarray:
    """Return the largest real part of the eigenvalues of df/dz - I at each state.

    Where it is negative at an equilibrium, the neural ODE du/dt = f(u, h) - u returns there after
    any small disturbance; where it is positive, almost no small disturbance dies out. The unit is
    that of 1 / t.

    An estimate: up to a width of 64 exact up to rounding (LAPACK's dense eigenvalues); above, the
    largest real part of the Ritz values of the implicitly restarted Arnoldi method (Saad 2011,
    chapters 6 and 7), by ARPACK to a relative tolerance of 1e-6 and from the same start for every
    sample. A Ritz value lies in the Jacobian's field of values: where the Jacobian is normal, the
    estimate is from below. In a crowd of eigenvalues ARPACK may take the next for the rightmost
    (0.003 off has been seen). Where it does not converge, the eigenvalues are LAPACK's.

    Parameters
    ----------
    model : ModelSpec
    params : dict of str to ndarray
    x : ndarray (n, n_features)
    state : ndarray (n, n_state)
        Where the Jacobian is taken, an equilibrium or not.

    Returns
    -------
    ndarray of float64 (n,)
        NaN where the state or the Jacobian is not finite.

    References
    ----------
    Y. Saad (2011). Numerical Methods for Large Eigenvalue Problems. 2nd edition, SIAM.
    R. Lehoucq, D. Sorensen, C. Yang (1998). ARPACK Users' Guide. SIAM.
    S. Bai, V. Koltun, J. Z. Kolter (2021). Stabilizing Equilibrium Models by Jacobian
    Regularization. ICML.
    """
    cell = _cell(model, params)
    dense = model.state_width <= DENSE
    abscissa = np.full(len(state), np.nan)
    if not np.isfinite(np.prod(cell.norms)):  # which bounds the norm of every Jacobian
        return abscissa
    for part in _chunks(model, len(state)):
        here = _linearize(model, params, cell, x[part], state[part])
        finite = np.flatnonzero(np.isfinite(np.hstack([state[part], here.value])).all(axis=1))
        if dense:
            values = np.linalg.eigvals(_dense_jacobians(here.at(finite)))
            largest = values.real.max(axis=1)
        else:
            largest = np.array([_rightmost(here.at(finite[k : k + 1])) for k in range(len(finite))])
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
        the state is not finite; with a finite horizon, whose states are not meant to be equilibria.
    """
    cell = _cell(model, params)
    bound = np.full(len(state), np.inf)
    if model.horizon is not None:
        return bound
    for part in _chunks(model, len(state)):
        here = _linearize(model, params, cell, x[part], state[part])
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
    # An error of y moves both terms; ||W||_F bounds what it becomes in the second.
    added = error * (1 + np.linalg.norm(weight) / monotonicity)
    return np.linalg.norm(gap, axis=1) + np.linalg.norm(gap @ weight, axis=1) / monotonicity + added


def _chunks(model: ModelSpec, n: int) -> Iterator[slice]:
    n_chunk = max(1, CHUNK_BYTES // (8 * model.state_width * max(model.cell_widths)))
    return (slice(start, start + n_chunk) for start in range(0, n, n_chunk))


def _cell(model: ModelSpec, params: Params) -> _Cell:
    """Return the cell's layers as they act: scaled if contractive, composed if monotone."""
    if model.stability == "monotone":
        return _monotone_cell(model, params)
    n_layers = len(model.hidden_layer_sizes) + 1
    weights = [np.asarray(params[f"cell.{i}.weight"], np.float64) for i in range(n_layers)]
    biases = [np.asarray(params[f"cell.{i}.bias"], np.float64) for i in range(n_layers)]
    values = [_singular_values(weight) for weight in weights]
    scale = 1.0
    if model.stability == "contractive" and all(s[0] > 0 for s in values):
        log_product = sum(map(_log_schatten_norm, values))
        scale = np.exp(min(0.0, (np.log(model.contraction) - log_product) / n_layers))
    activations = [model.activation] * (n_layers - 1) + ["identity"]
    norms = [(1 + _rounding(model)) * scale * float(s[0]) for s in values]
    return _Cell([scale * weight for weight in weights], biases, activations, norms)


def _monotone_cell(model: ModelSpec, params: Params) -> _Cell:
    a, b, bias = (
        np.asarray(params[f"cell.0.{name}"], np.float64) for name in ("weight", "skew", "bias")
    )
    with np.errstate(over="ignore", invalid="ignore"):  # of weights that are not finite
        weight = -a @ a.T + b - b.T
        size = np.linalg.norm(a) ** 2 + 2 * np.linalg.norm(b)
    unit = _rounding(model)
    norm = (1 + unit) * float(_singular_values(weight)[0])
    return _Cell([weight], [bias], [model.activation], [norm], unit * float(size))


def _singular_values(weight: np.ndarray) -> np.ndarray:
    """Return them, the largest first; NaN, which reaches all that follows, if not finite."""
    if not np.isfinite(weight).all():
        return np.full(1, np.nan)
    return np.linalg.svd(weight, compute_uv=False)


def _log_schatten_norm(values: np.ndarray) -> float:
    """Return log of ``(sum_k s_k^p)^(1/p)`` of the singular values s, the largest first."""
    return np.log(values[0]) + np.log(((values / values[0]) ** SCHATTEN_P).sum()) / SCHATTEN_P


def _injected(model: ModelSpec, params: Params, cell: _Cell, x: np.ndarray):
    """Return what h adds to ``z @ W_0`` ``(n, n_out)``, and a bound of its rounding error ``(n,)``.

    The cell is an MLP of z + h, so that this is ``h @ W_0 + b_0``; but ``h + b_0`` in the monotone
    cell.
    """
    h, error = np.asarray(x, np.float64), np.zeros(len(x))
    if model.n_state is not None:
        weight, bias = (
            np.asarray(params[f"encoder.{name}"], np.float64) for name in ("weight", "bias")
        )
        error = _rounding(model) * _size(h, weight, bias)
        h = h @ weight + bias
    if model.stability == "monotone":
        return h + cell.biases[0], error + _rounding(model) * np.linalg.norm(h, axis=1)
    error = cell.norms[0] * error + _rounding(model) * _size(h, cell.weights[0], cell.biases[0])
    return h @ cell.weights[0] + cell.biases[0], error


def _linearize(
    model: ModelSpec, params: Params, cell: _Cell, x: np.ndarray, state: np.ndarray
) -> _Linear:
    """Return the cell and its derivative at the states ``(n, n_state)``."""
    a, slopes = np.asarray(state, np.float64), []
    unit = _rounding(model)
    with np.errstate(over="ignore", invalid="ignore"):  # of states that are not finite
        injected, error = _injected(model, params, cell, x)
        for i, (weight, bias, activation) in enumerate(
            zip(cell.weights, cell.biases, cell.activations, strict=True)
        ):
            if i == 0:
                error = error + unit * _size(a, weight, injected)
                error = error + cell.composing * np.linalg.norm(a, axis=1)
                a = a @ weight + injected
            else:
                error = cell.norms[i] * error + unit * _size(a, weight, bias)
                a = a @ weight + bias
            act, slope, _ = _ACTIVATIONS[activation]
            a = act(a)
            error = error + unit * np.linalg.norm(a, axis=1)
            slopes.append(None if slope is None else slope(a))
    return _Linear(cell, a, error, slopes)


def _distance_bound(model: ModelSpec, here: _Linear, z: np.ndarray) -> np.ndarray:
    """Return the bound that the kind of cell guarantees, ``(n,)``; it may be NaN."""
    cell = here.cell
    unit = _rounding(model)
    if model.stability == "monotone":
        (weight,) = cell.weights
        with np.errstate(over="ignore", invalid="ignore"):
            gap = np.linalg.norm(z - here.value, axis=1) + here.error
            bound = monotone_distance_bound(weight, z, here.value, 1.0, here.error)
            return (1 + unit) * (bound + cell.composing * gap)
    lipschitz = float(np.prod(cell.norms))
    lipschitz *= float(np.prod([_ACTIVATIONS[name][2] for name in cell.activations]))
    if model.stability == "contractive":
        lipschitz = min(lipschitz, model.contraction)
    with np.errstate(over="ignore", invalid="ignore"):
        bound = contraction_distance_bound(z, here.value, lipschitz, here.error)
    return (1 + unit) * bound


def _rounding(model: ModelSpec) -> float:
    """Return a generous relative error of a product with a weight, scaled weights included."""
    # n eps bounds that of an inner product of length n, and as much again that of the scale.
    return 4 * max(model.n_features, *model.cell_widths) * float(np.finfo(np.float64).eps)


def _size(a: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return a bound of ``|| |a| |weight| + |bias| ||_2``, which rounding is relative to, (n,)."""
    return np.linalg.norm(a, axis=1) * np.linalg.norm(weight) + np.linalg.norm(bias, axis=-1)


def _dense_jacobians(here: _Linear) -> np.ndarray:
    """Return the transposed Jacobians J[k, i, j] = df_j/dz_i, ``(n, n_state, n_state)``."""
    n, width = here.value.shape
    return here.jvp(np.broadcast_to(np.eye(width), (n, width, width)))


def _rightmost(here: _Linear) -> float:
    """Return the largest real part of the eigenvalues of df/dz at one sample, by ARPACK."""
    sparse: Any = scipy.sparse.linalg  # it has no types, and pyright guesses wrong ones
    width = here.value.shape[1]
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
        values = np.linalg.eigvals(_dense_jacobians(here)[0])
    largest = values.real.max()
    # A Krylov space lies in the range of the Jacobian, so it never shows the eigenvalue 0.
    return max(largest, 0.0) if _rank_bound(here) < width else largest


def _rank_bound(here: _Linear) -> int:
    """Return an upper bound of the rank of df/dz at one sample."""
    ranks = [min(weight.shape) for weight in here.cell.weights]
    ranks += [np.count_nonzero(slope) for slope in here.slopes if slope is not None]
    return min(ranks)
