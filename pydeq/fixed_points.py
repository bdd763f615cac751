"""Fixed points of any numpy function, by plain iteration, with the path taken.

The smallest member of the family: a DEQ predicts with ``z* = f(z*, h)``, and ``fixed_point`` finds
``z* = f(z*)`` for a function that you write down, such as ``cos``.
"""

import math
import numbers
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pydeq.errors import ConvergenceWarning
from pydeq.model import residual

__all__ = ["FixedPoint", "fixed_point"]

# The rate is the geometric mean over this many ratios: enough to even out a map that turns as it
# contracts, few enough to leave the start of the path out.
_RATE_WINDOW = 8


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """Where an iteration ended, and how it went.

    Attributes
    ----------
    value : float or ndarray (of the start's shape)
        The last iterate ``z``; a float where the start was a scalar.
    trajectory : ndarray (n_steps + 1, then the start's shape)
        The iterates in order, from the start to `value`. All are finite.
    residual : float
        ``||f(z) - z||_inf / max(||f(z)||_inf, eps)`` at `value`, eps being the dtype's; NaN where
        ``f(z)`` is not finite.
    converged : bool
        Whether `value` satisfies the tolerances asked for.
    n_evals : int
        Evaluations of f: one a step, and one more that tests the last iterate.
    contraction_rate : float
        Measured ratio of successive step norms near the end, which estimates ``|f'(z)|`` (the
        spectral radius of the Jacobian for arrays). Below 1 the iteration closes in. NaN where
        fewer than two steps were above round-off.
    """

    value: float | np.ndarray
    trajectory: np.ndarray = field(repr=False)
    residual: float
    converged: bool
    n_evals: int
    contraction_rate: float


def fixed_point(
    f: Callable[[Any], Any],
    x0: ArrayLike,
    *,
    abstol: float = 1e-8,
    reltol: float = 1e-8,
    max_steps: int = 1000,
) -> FixedPoint:
    """Iterate ``z <- f(z)`` from `x0` until z no longer changes.

    The iteration stops where ``||f(z) - z||_inf <= abstol`` or
    ``||f(z) - z||_inf <= reltol * ||f(z)||_inf``, the rule of SteadyStateDiffEq's ``DynamicSS``.

    Parameters
    ----------
    f : callable
        Takes a real number or array and returns one of the same shape.
    x0 : float or array-like of any shape
        The start. float32 is kept; integers become float64.
    abstol, reltol : float, default=1e-8
        Absolute and relative tolerance, at least 0.
    max_steps : int, default=1000
        Steps after which the iteration gives up, at least 1.

    Returns
    -------
    FixedPoint

    Warns
    -----
    ConvergenceWarning
        Where the tolerances were not reached. The last finite iterate is returned all the same,
        with ``converged=False``.

    Raises
    ------
    TypeError
        If `f` is not callable, or a value is not a real number.
    ValueError
        If `f` changes the shape or returns masked values, the start is empty, masked or not
        finite, a tolerance is negative or not finite, or `max_steps` is below 1.

    Examples
    --------
    >>> import numpy as np
    >>> from pydeq import fixed_point
    >>> result = fixed_point(np.cos, -1.0)
    >>> round(result.value, 6), result.converged
    (0.739085, True)
    """
    z = _check(f, x0, abstol, reltol, max_steps)
    abstol, reltol = float(abstol), float(reltol)
    trajectory, steps = [z], []
    converged = False
    while True:
        # numpy's own warnings are silenced: what overflows is reported below, with its cause.
        with np.errstate(all="ignore"):
            fz = _evaluate(f, z)
            step = float(np.abs(fz - z).max())
        if not np.isfinite(fz).all():
            break
        steps.append(step)
        converged = step <= abstol or step <= reltol * float(np.abs(fz).max())
        if converged or len(trajectory) > max_steps:
            break
        z = fz
        trajectory.append(z)

    with np.errstate(all="ignore"):
        final_residual = float(residual(z.reshape(1, -1), fz.reshape(1, -1))[0])
    result = FixedPoint(
        value=float(z) if z.ndim == 0 else z,
        trajectory=np.stack(trajectory),
        residual=final_residual,
        converged=converged,
        n_evals=len(trajectory),
        contraction_rate=_contraction_rate(steps, trajectory),
    )
    if not converged:
        message = _failure(result, fz, steps, abstol, reltol, max_steps)
        warnings.warn(message, ConvergenceWarning, stacklevel=2)
    return result


def _check(f: Any, x0: Any, abstol: Any, reltol: Any, max_steps: Any) -> np.ndarray:
    """Check `fixed_point`'s arguments and return the start as a floating array of its own."""
    if not callable(f):
        raise TypeError(f"f must be callable, as in fixed_point(np.cos, 1.0); got {f!r}")
    for name, tolerance in (("abstol", abstol), ("reltol", reltol)):
        if not isinstance(tolerance, numbers.Real) or isinstance(tolerance, bool):
            raise TypeError(f"{name} must be a number; got {tolerance!r}")
        if not 0 <= _float(tolerance) < math.inf:
            raise ValueError(f"{name} must be finite and at least 0; got {_shown(tolerance)}")
    if not isinstance(max_steps, numbers.Integral) or isinstance(max_steps, bool):
        raise TypeError(f"max_steps must be an integer; got {max_steps!r}")
    if _float(max_steps) < 1:
        raise ValueError(f"max_steps must be at least 1; got {_shown(max_steps)}")
    if _float(max_steps) >= 2**63:
        raise ValueError(f"max_steps must be below 2**63; got {_shown(max_steps)}")

    if np.ma.is_masked(x0):
        raise ValueError("x0 has masked values, which no iteration can start from; fill them")
    start = np.asarray(x0)
    if start.dtype.kind not in "biuf":
        raise TypeError(f"x0 must be a real number or array; got dtype {start.dtype}")
    if start.size == 0:
        raise ValueError(f"x0 must have at least one element; got shape {start.shape}")
    if not np.isfinite(start).all():
        raise ValueError("x0 must be finite; it contains NaN or infinity")
    return start.astype(start.dtype if start.dtype.kind == "f" else np.float64)


def _float(value: Any) -> float:
    """Return a number as a float; infinity where it is larger than floats are."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _shown(value: Any) -> str:
    """Return a number for a message; Python does not write out integers of many digits."""
    if isinstance(value, int) and abs(value) >= 10**400:
        return f"an integer of {value.bit_length()} bits"
    return f"{value!r:.500}"


def _evaluate(f: Callable[[Any], Any], z: np.ndarray) -> np.ndarray:
    """Return ``f(z)`` in z's dtype, after checking that it is real and of z's shape."""
    # A copy: an f that works in place must not rewrite the trajectory. [()] makes a 0-d array a
    # numpy scalar, which is a float to functions that ask for one.
    returned = f(z.copy()[()])
    if np.ma.is_masked(returned):
        raise ValueError("f must return a number for each element; it returned masked values")
    fz = np.asarray(returned)
    if fz.dtype.kind not in "biuf":
        raise TypeError(f"f must return real numbers; got dtype {fz.dtype}")
    if fz.shape != z.shape:
        raise ValueError(
            f"f must return its argument's shape: it was given shape {z.shape} "
            f"and returned shape {fz.shape}"
        )
    return fz.astype(z.dtype)


def _contraction_rate(steps: list[float], trajectory: list[np.ndarray]) -> float:
    """Return the geometric mean of the last ratios of `steps`, without those lost in round-off.

    ``steps[k]`` is ``||f(z_k) - z_k||_inf``. Only a run of consecutive steps gives ratios, so the
    last such run above round-off is taken.
    """
    eps = np.finfo(trajectory[0].dtype).eps
    measurable = [
        1e3 * eps * float(np.abs(z).max()) < step < math.inf
        for step, z in zip(steps, trajectory, strict=False)  # the last z may have no step
    ]
    if True not in measurable:
        return math.nan
    last = len(measurable) - 1 - measurable[::-1].index(True)
    first = last
    while first > 0 and measurable[first - 1] and last - first < _RATE_WINDOW:
        first -= 1
    if first == last:
        return math.nan
    # In logarithms: the ratio of the two ends may overflow.
    return math.exp((math.log(steps[last]) - math.log(steps[first])) / (last - first))


def _failure(
    result: FixedPoint,
    fz: np.ndarray,
    steps: list[float],
    abstol: float,
    reltol: float,
    max_steps: int,
) -> str:
    """Return the warning's text: what happened, what was measured, what to change."""
    n_steps = len(result.trajectory) - 1
    measured = f"residual {result.residual:.2g}, contraction rate {result.contraction_rate:.3g}"
    damp = (
        "start nearer to the fixed point, or iterate the damped map "
        "z -> (1 - a) * z + a * f(z) with 0 < a < 1, which has the same fixed points"
    )
    if not np.isfinite(fz).all():
        return f"f returned a value that is not finite after {n_steps} steps ({measured}): {damp}."

    missed = f"no fixed point within abstol={abstol:g}, reltol={reltol:g} after {n_steps} steps"
    magnitude = float(np.abs(fz).max())
    eps = float(np.finfo(fz.dtype).eps)
    if steps[-1] <= 16 * eps * magnitude:
        return (
            f"{missed} ({measured}): the steps are down to the round-off of {fz.dtype}; "
            f"set reltol to at least {16 * eps:.1g}, or give x0 in a wider dtype."
        )
    rate = result.contraction_rate
    target = max(abstol, reltol * magnitude)
    # The rate looks at the end of the path alone, where a chaotic map may shrink by chance.
    half = len(steps) // 2
    if 0 < rate < 0.999 and target > 0 and max(steps[half:]) < np.median(steps[:half]):
        needed = max_steps + math.ceil(math.log(target / steps[-1]) / math.log(rate))
        return (
            f"{missed} ({measured}): it is closing in; raise max_steps to about {needed}, "
            "or raise a tolerance."
        )
    return f"{missed} ({measured}): the steps hardly shrink, or grow; {damp}."
