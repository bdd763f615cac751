"""What a fitted estimator is asked for: equilibria, trajectories, a file."""

import abc
import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from pydeq.engines import AbstractSession
from pydeq.estimators import advice, model_file, parameters, stored
from pydeq.estimators.results import Results
from pydeq.estimators.rows import is_sliced
from pydeq.estimators.samples import check_samples, checked_blocks
from pydeq.model import Equilibrium, ModelSpec, Params, SolverSpec
from pydeq.model import certify as add_certificates

__all__ = ["AbstractFitted"]


class AbstractFitted(BaseEstimator, abc.ABC):
    """Solve with, and keep, what was fitted.

    What only reads takes a copy of the estimator, so that it sees one model from its beginning to
    its end, whatever other threads fit meanwhile.
    """

    model_spec_: ModelSpec
    params_: Params

    @abc.abstractmethod
    def _decode_output(self, output: np.ndarray) -> np.ndarray:
        """Return the model's output ``(n, n_outputs)`` as users are given it."""

    @abc.abstractmethod
    def _open(self, solver: SolverSpec) -> contextlib.AbstractContextManager[AbstractSession]:
        """Open a session on the fitted weights, which only solves."""

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "params_")

    def equilibrium(
        self, X: Any, certify: bool = False, *, out: Mapping[str, Any] | None = None
    ) -> Equilibrium:
        """Return the equilibrium of each sample: state, output, residual, evaluations, converged.

        Parameters
        ----------
        X : array-like (n_samples, n_features)
        certify : bool, default=False
            Whether to add two certificates to each sample, in numpy float64 whatever the engine;
            the derivative of a cell that is a function or Julia code is the engine's, though.
            ``spectral_abscissa`` estimates the largest real part of the eigenvalues of df/dz - I
            at its state. Where it is negative and the sample converged, the neural ODE returns to
            this equilibrium. ``distance_bound`` is a guaranteed bound of the Euclidean distance
            from its state to the exact equilibrium, inf where nothing is guaranteed. It takes
            milliseconds a sample. See :mod:`pydeq.model.certificate`.
        out : dict of str to array, optional
            Arrays to write to, by name of a field: ``{"state": states, "output": outputs}``. They
            take rows by slices, as memory maps and the arrays of h5py and zarr do, and have the
            field's shape. What is not named is returned in memory.

        Returns
        -------
        Equilibrium
            Its ``output`` is raw: the predicted values, or logits of the classes. It has the
            arrays of `out` where they were given.

        Raises
        ------
        ValueError
            If an array of `out` has another shape, or its dtype cannot hold the field's.

        Warns
        -----
        ConvergenceWarning
            If samples did not converge; their ``converged`` is False.
        """
        certify = parameters.check_flag({"certify": certify}, "certify")
        fitted = self._snapshot()
        results = Results({} if out is None else out)

        def keep(rows: slice, part: Equilibrium) -> None:
            part = dataclasses.replace(part, output=fitted._decode_output(part.output))
            results.take(rows, part)

        fitted._solve(X, keep, results.check, certify=certify)
        return results.whole()

    def trajectory(self, X: Any, depth: int) -> np.ndarray:
        """Return the fixed-point iterates u(k + 1) = f(u(k), h) of each sample.

        Parameters
        ----------
        X : array-like (n_samples, n_features)
        depth : int
            Number of iterations after the start u(0): see `init`.

        Returns
        -------
        ndarray (depth + 1, n_samples, n_state)
            The iterates as they are, whether or not they approach an equilibrium.
        """
        fitted = self._snapshot()
        check_is_fitted(fitted)
        X = check_samples(fitted, np.asarray(X) if is_sliced(X) else X, fitted._dtype)
        X = np.asarray(X, fitted._dtype, order="C")
        depth = parameters.check_depth(depth)
        with fitted._open(SolverSpec()) as session:
            return session.trajectory(X, depth)

    def save(self, path: model_file.PathName) -> None:
        """Write the fitted estimator to one safetensors file; :func:`pydeq.load` reads it.

        Parameters
        ----------
        path : str or path-like
            A file that is already there is replaced in one step, once the new one is complete; it
            keeps its mode. A symbolic link is followed.

        Raises
        ------
        OSError
            If the file cannot be written, or the path is a directory, a pipe or a device.
        ValueError
            If a parameter is one that `fit` would refuse.

        Warns
        -----
        UserWarning
            If the cell is a function, which no file has: loading will need it again.
        """
        fitted = self._snapshot()
        check_is_fitted(fitted)
        header, arrays = stored.describe(fitted)
        model_file.write(path, header, arrays)
        if (name := stored.needed_function(header)) is not None:
            warnings.warn(
                f"The file has the weights of the model, and not its cell, the function {name}. "
                f"Keep it: pydeq.load(path, cell={name}) will need it.",
                UserWarning,
                stacklevel=2,
            )

    def _snapshot(self) -> Self:
        """Return the estimator as it is at this moment."""
        same = object.__new__(type(self))
        vars(same).update(vars(self))
        return same

    def _solve(
        self,
        X: Any,
        take: Callable[[slice, Equilibrium], Any],
        check: Callable[[int, ModelSpec, np.dtype], None] | None = None,
        *,
        certify: bool = False,
    ) -> list[Any]:
        """Convert and solve X block by block; return what `take` makes of each.

        It is given the rows of X and their equilibria, whose output is the model's own. `check` is
        given the number of samples, the model and its dtype before the work.
        """
        check_is_fitted(self)
        samples = check_samples(self, X, self._dtype)
        if check is not None:
            check(samples.shape[0], self.model_spec_, self._dtype)
        # Tolerances may be changed after the fit; the model is the one that was fitted.
        solver = parameters.solver_spec(self.get_params(deep=False), self.model_spec_)
        tally, taken = advice.Tally(), []
        with self._open(solver) as session:
            width = max(self.model_spec_.state_width, self.model_spec_.n_outputs)
            for rows, x in checked_blocks(self, samples, self._dtype, width):
                part = session.equilibrium(x)
                tally = tally.including(part)
                if certify:
                    part = add_certificates(self.model_spec_, self.params_, x, part, session.jvp)
                taken.append(take(rows, part))
        advice.warn_about_solve(tally, self.model_spec_, solver, self._dtype)
        return taken

    @property
    def _dtype(self) -> np.dtype:
        return next(iter(self.params_.values())).dtype
