"""What a search for equilibria returns, and the certificates that can be added to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pydeq.model.html import html_table

__all__ = ["Certificates", "Equilibrium", "joined"]


@dataclass(frozen=True)
class Certificates:
    """What is known of n states beside their residuals, computed in float64 from the weights.

    Attributes
    ----------
    spectral_abscissa : ndarray of float64 (n,)
        An estimate of the largest real part of the eigenvalues of df/dz - I at the state, in units
        of 1 / t. Negative: the neural ODE returns to this equilibrium after a small disturbance.
    distance_bound : ndarray of float64 (n,)
        A guaranteed bound of ``||z - z*||_2``, in the unit of the state; inf where there is none.
    """

    spectral_abscissa: np.ndarray
    distance_bound: np.ndarray


@dataclass(frozen=True)
class Equilibrium:
    """Equilibria of n samples and how well they were found.

    Attributes
    ----------
    state : ndarray (n, n_state)
        z*, in the dtype of the model.
    output : ndarray (n, n_outputs)
        D z*: the raw output, before any link function.
    residual : ndarray (n,)
        ``||f(z) - z||_inf / max(||f(z)||_inf, eps)``, recomputed at the returned state.
    n_evals : ndarray of int64 (n,)
        Evaluations of the cell (and of products with its Jacobian) that the sample took.
    converged : ndarray of bool (n,)
        Whether the returned state meets the stopping rule; with a finite horizon, whether the
        integration reached it. A state that is not finite has not converged.
    certificates : Certificates or None
        None unless asked for by ``equilibrium(X, certify=True)``.

    Examples
    --------
    >>> import numpy as np
    >>> from pydeq import presets
    >>> model = presets.double(max_iter=200).fit(*presets.double_data())
    >>> found = model.equilibrium([[1.0], [-5.0]])
    >>> found.state.shape, found.converged.tolist()
    ((2, 1), [True, True])
    >>> bool(np.all(found.residual <= 1e-2))
    True
    """

    state: np.ndarray
    output: np.ndarray
    residual: np.ndarray
    n_evals: np.ndarray
    converged: np.ndarray
    certificates: Certificates | None = None

    def _repr_html_(self) -> str:
        """Return a small table: how many, how well, at what cost."""
        n = len(self.converged)
        rows = [("samples", f"{n:,}"), ("states of each", f"{self.state.shape[1]:,}")]
        if n:
            n_converged = int(self.converged.sum())
            rows += [
                ("converged", f"{n_converged:,} ({n_converged / n:.1%})"),
                ("worst residual", f"{self.residual.max():.1e}"),
                ("median residual", f"{np.median(self.residual):.1e}"),
                ("evaluations per sample, mean", f"{self.n_evals.mean():.1f}"),
                ("evaluations per sample, most", f"{self.n_evals.max():,}"),
            ]
        if n and self.certificates is not None:
            rows += [
                ("stable", f"{int((self.certificates.spectral_abscissa < 0).sum()):,}"),
                ("largest distance bound", f"{self.certificates.distance_bound.max():.1e}"),
            ]
        return html_table("Equilibrium", rows)


def joined(parts: Sequence[Equilibrium]) -> Equilibrium:
    """Return the equilibria of several groups of samples as those of one."""
    if len(parts) == 1:
        return parts[0]
    both = [part.certificates for part in parts if part.certificates is not None]
    return Equilibrium(
        state=np.concatenate([part.state for part in parts]),
        output=np.concatenate([part.output for part in parts]),
        residual=np.concatenate([part.residual for part in parts]),
        n_evals=np.concatenate([part.n_evals for part in parts]),
        converged=np.concatenate([part.converged for part in parts]),
        certificates=_joined_certificates(both) if both else None,
    )


def _joined_certificates(parts: Sequence[Certificates]) -> Certificates:
    return Certificates(
        np.concatenate([part.spectral_abscissa for part in parts]),
        np.concatenate([part.distance_bound for part in parts]),
    )
