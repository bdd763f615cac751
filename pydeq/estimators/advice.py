"""What a user is told when a solve or a fit did not go to its end, and what would cure it."""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pydeq.errors import ConvergenceWarning
from pydeq.model import Equilibrium, ModelSpec, SolverSpec
from pydeq.training import TrainResult

__all__ = ["Tally", "warn_about_fit", "warn_about_solve"]

# stacklevel of the user's line: above it are this module's two and the estimator's two functions.
_USER = 5


class Tally(NamedTuple):
    """What became of the samples of a solve.

    Attributes
    ----------
    n_samples, n_failed : int
    n_infinite : int
        Of those that failed, with a state that is not finite.
    worst : float
        Largest finite residual of those that failed; inf: none is finite.
    """

    n_samples: int = 0
    n_failed: int = 0
    n_infinite: int = 0
    worst: float = np.inf

    def including(self, found: Equilibrium) -> "Tally":
        """Return the tally with more samples."""
        failed = ~found.converged
        residuals = found.residual[failed & np.isfinite(found.residual)]
        worst = float(residuals.max()) if residuals.size else np.inf
        known = [value for value in (self.worst, worst) if value < np.inf]
        return Tally(
            self.n_samples + len(failed),
            self.n_failed + int(failed.sum()),
            self.n_infinite + int((~np.isfinite(found.state[failed]).all(axis=1)).sum()),
            max(known, default=np.inf),
        )


def warn_about_solve(tally: Tally, model: ModelSpec, solver: SolverSpec, dtype: np.dtype) -> None:
    """Warn, once, where samples have not converged."""
    if not tally.n_failed:
        return
    note = ""
    if tally.n_infinite:
        note = f", {tally.n_infinite} of them with a state that is not finite"
    _warn(
        f"{tally.n_failed} of {tally.n_samples} samples did not reach "
        f"{_goal(model, solver, tally.worst)}{note}. What is returned for them is "
        f"not a prediction to rely on; equilibrium(X).converged marks them. "
        f"{_cure(model, solver, dtype)}"
    )


def warn_about_fit(
    result: TrainResult,
    action: str,
    n_epochs: int,
    n_samples: int,
    model: ModelSpec,
    solver: SolverSpec,
) -> None:
    """Warn where training was cut off, and, once, where samples have not converged in it."""
    history, epoch = result.history, result.kept_epoch
    kept = f"the weights of epoch {epoch}" if epoch else "the weights it started from"
    if history.stop_reason == "interrupted":
        _warn(
            f"{action} was interrupted after {len(history)} of {n_epochs} epochs; "
            f"the estimator holds {kept}.",
            UserWarning,
        )
    if history.stop_reason == "diverged":
        _warn(
            f"Training diverged in epoch {len(history)} (loss {history[-1].loss:g}, gradient norm "
            f"{history[-1].grad_norm:g}): the estimator holds {kept}. A smaller "
            "learning_rate_init, features and targets of unit scale, or stability='contractive' "
            "keep training finite."
        )
    if any(history.n_failed):
        _warn(_failed_samples(result, n_samples, model, solver))


def _failed_samples(
    result: TrainResult, n_samples: int, model: ModelSpec, solver: SolverSpec
) -> str:
    history = result.history
    worst = max((r.worst_residual for r in history if r.n_failed), key=_nan_first)
    left_out = ""
    if model.horizon is not None or solver.adjoint != "unrolled":
        left_out = " They were left out of the gradient."
    if history.stop_reason == "no_equilibrium":
        left_out = " That leaves nothing to learn from, so training ended there."
    dtype = next(iter(result.kept.params.values())).dtype
    return (
        f"While training, {history[-1].n_failed} of {n_samples} samples in the last of "
        f"{len(history)} epochs ({sum(history.n_failed)} of {n_samples * len(history)} solves in "
        f"all) did not reach {_goal(model, solver, worst)}.{left_out} "
        f"{_cure(model, solver, dtype)}"
    )


def _nan_first(value: float) -> float:
    return np.inf if np.isnan(value) else value


def _goal(model: ModelSpec, solver: SolverSpec, worst: float) -> str:
    """Return what was to be reached, within what, and how far off the worst sample is."""
    if model.horizon is not None:
        return f"horizon={model.horizon:g} within max_steps={solver.max_steps}"
    return (
        f"an equilibrium within max_steps={solver.max_steps} (worst residual {worst:.1e}, asked "
        f"for reltol={solver.reltol:g} or abstol={solver.abstol:g})"
    )


def _cure(model: ModelSpec, solver: SolverSpec, dtype: np.dtype) -> str:
    if model.horizon is not None:
        return "A larger max_steps or looser abstol and reltol let the integration finish."
    return "What helps: " + "; ".join(_cures(model, solver, dtype)) + "."


def _cures(model: ModelSpec, solver: SolverSpec, dtype: np.dtype) -> Iterator[str]:
    if model.stability not in ("contractive", "monotone"):
        yield (
            "fit with stability='contractive', whose one equilibrium every solver finds (this "
            f"model has stability={model.stability!r})"
        )
    if solver.reltol < 10 * np.finfo(dtype).eps:
        yield f"reltol={solver.reltol:g} is more than {dtype} can tell apart: loosen it"
    if solver.reltol > 1e-2:
        yield (
            "tighter abstol and reltol, such as 1e-3 (gradients taken at loose equilibria are "
            "wrong, and cost a cell its stability)"
        )
    else:
        yield "a looser reltol"
    yield "a larger max_steps"
    best = "peaceman_rachford" if model.stability == "monotone" else "anderson"
    yield f"another solver, such as {'newton' if solver.name == best else best!r}"


def _warn(message: str, category: type[Warning] = ConvergenceWarning) -> None:
    warnings.warn(message, category, stacklevel=_USER)
