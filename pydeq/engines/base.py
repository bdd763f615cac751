"""The contract of an engine. One test file holds every engine, and a numpy oracle, to it."""

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from pydeq.cell_function import CellFunction
from pydeq.model import (
    ODE_METHODS,
    Equilibrium,
    ModelSpec,
    OptimizerSpec,
    Params,
    SolverSpec,
)

__all__ = [
    "AbstractEngine",
    "AbstractSession",
    "BatchReport",
    "EpochReport",
    "OnBatch",
    "check_supported",
    "epoch_report",
    "what_is_missing",
]


class BatchReport(NamedTuple):
    """What one batch of an epoch did.

    Attributes
    ----------
    loss : float
        Penalties included, at the weights before the step; void where `weight` is 0.
    weight : float
        Sum of the weights of the samples that counted; 0: no step was taken.
    grad_norm : float
        L2 norm of the gradient.
    n_evals : float
        Evaluations of the cell in the forward solve, summed over the samples that have a weight.
    n_samples : int
        Samples that have a weight.
    worst_residual : float
    n_failed : int
    """

    loss: float
    weight: float
    grad_norm: float
    n_evals: float
    n_samples: int
    worst_residual: float
    n_failed: int


OnBatch = Callable[[BatchReport], None]
"""Is told of each batch of an epoch, in order, after its step."""


@dataclass(frozen=True)
class EpochReport:
    """What one epoch did; the fields are those of :class:`pydeq.History`'s records."""

    loss: float
    grad_norm: float
    n_evals: float
    worst_residual: float
    n_failed: int


def epoch_report(batches: Sequence[BatchReport]) -> EpochReport:
    """Return the report of an epoch from its batches'.

    The loss is the mean over the samples that counted, by weight, NaN where none did; the gradient
    norm is the mean over the batches that took a step; the evaluations are the mean over samples.
    """
    stepped = [batch for batch in batches if batch.weight > 0]
    weight = sum(batch.weight for batch in stepped)
    loss = sum(batch.loss * batch.weight for batch in stepped)
    n_samples = sum(batch.n_samples for batch in batches)
    residuals = (batch.worst_residual for batch in batches)
    return EpochReport(
        loss=float(loss / weight) if stepped else math.nan,
        grad_norm=float(sum(batch.grad_norm for batch in stepped) / max(len(stepped), 1)),
        n_evals=float(sum(batch.n_evals for batch in batches) / max(n_samples, 1)),
        worst_residual=float(max((math.inf if r != r else r for r in residuals), default=0.0)),
        n_failed=int(sum(batch.n_failed for batch in batches)),
    )


class AbstractSession(abc.ABC):
    """One model, its optimiser state and its data, resident in one engine.

    Every array has the dtype of the parameters the session was opened with, float32 or float64,
    and all work is done in that dtype. A sample's equilibrium does not depend on which other
    samples it is computed with.
    """

    @abc.abstractmethod
    def load_data(self, x: np.ndarray, target: np.ndarray, weight: np.ndarray) -> None:
        """Make the training data resident.

        Parameters
        ----------
        x : ndarray (n, n_features)
            Of any real dtype; an engine converts what it computes with, batch by batch if it can.
        target : ndarray (n, n_outputs), or for ``log_loss`` (n,) of int32
            Values, or indices of classes.
        weight : ndarray (n,)
            Sample weights, not negative; a sample of weight 0 has no influence.
        """

    @abc.abstractmethod
    def train_epoch(
        self, order: np.ndarray, batch_size: int, on_batch: OnBatch | None = None
    ) -> EpochReport:
        """Run one epoch over the loaded data: one optimiser step a batch.

        Batches are the consecutive runs of `order` of length `batch_size`, the last one shorter.
        A sample that has not converged is counted in ``n_failed`` and left out of the loss, its
        penalties and the gradient, which hold at an equilibrium only. With ``unrolled`` a sample
        is counted alike, but only one whose state is not finite is left out. The step of a batch
        with no sample left is skipped.

        The call is atomic: if it raises (KeyboardInterrupt and what `on_batch` raises included),
        weights and optimiser state are those from before it.

        Parameters
        ----------
        order : ndarray of int64 (n_seen,)
            Indices into the loaded data.
        batch_size : int
        on_batch : callable, optional
            Is told of each batch, in order; an engine that works ahead of Python may be a few
            batches late.
        """

    @abc.abstractmethod
    def equilibrium(self, x: np.ndarray) -> Equilibrium:
        """Return the equilibria of `x` ``(n, n_features)``; lack of convergence does not raise.

        `x` is of any real dtype.
        """

    @abc.abstractmethod
    def loss_and_grad(
        self, x: np.ndarray, target: np.ndarray, weight: np.ndarray
    ) -> tuple[float, Params]:
        """Return the loss of one batch, penalties included, and its gradient.

        The Jacobian penalty takes the first probe of epoch 0. The gradient of an encoder that is
        not trained is zero. Where the next epoch has a fixed depth, they are those of that.
        """

    @abc.abstractmethod
    def trajectory(self, x: np.ndarray, depth: int) -> np.ndarray:
        """Return the fixed-point iterates from u(0) = f(0, h): ``(depth + 1, n, n_state)``."""

    @abc.abstractmethod
    def jvp(self, x: np.ndarray, state: np.ndarray, tangent: np.ndarray) -> np.ndarray:
        """Return the products of the cell's derivative df/dz with tangents, ``(n, n_state)``.

        It is taken at the states `state` ``(n, n_state)`` of the samples `x` ``(n, n_features)``;
        each has one tangent of `tangent` ``(n, n_state)``.
        """

    @abc.abstractmethod
    def params(self) -> Params:
        """Return a copy of the weights as numpy arrays."""

    @abc.abstractmethod
    def optimizer_state(self) -> Params:
        """Return the optimiser's state as named numpy arrays.

        They are ``count`` (an int64 scalar array), and ``m.<name>`` and ``v.<name>`` for every
        parameter, Adam's moments. Engines can read each other's.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of what the session holds in the engine; it cannot be used afterwards."""


class AbstractEngine(abc.ABC):
    """A way to solve and train; sessions do the work.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
        Where its sessions work.

    Raises
    ------
    EngineUnavailableError
        If the engine or the device cannot be used here.
    """

    name: ClassVar[str]

    solvers: ClassVar[tuple[str, ...]]
    """Those of :data:`pydeq.model.spec.SOLVERS` and ``ODE_METHODS`` that it has."""

    stabilities: ClassVar[tuple[str, ...]]
    """Those of :data:`pydeq.model.spec.STABILITIES` that it has."""

    unrolls: ClassVar[tuple[str, ...]]
    """The solvers of which it has ``adjoint="unrolled"``."""

    runs_julia: ClassVar[bool] = False
    """Whether a cell of one's own is Julia code; else it is a Python function."""

    @abc.abstractmethod
    def __init__(self, device: str = "auto") -> None: ...

    @abc.abstractmethod
    def open(
        self,
        model: ModelSpec,
        solver: SolverSpec,
        optimizer: OptimizerSpec,
        params: Params,
        optimizer_state: Params | None = None,
    ) -> AbstractSession:
        """Open a session on a copy of `params`, whose dtype it works in.

        `optimizer_state` is what :meth:`AbstractSession.optimizer_state` returned, to go on from
        there; None starts afresh.

        Raises
        ------
        ValueError
            If the engine does not have what the specs ask for, see `check_supported`.
        """


def what_is_missing(engine: type[AbstractEngine], model: ModelSpec, solver: SolverSpec) -> str:
    """Return what `engine` has not of what is asked for, and what it has; empty: it has all."""
    own = model.cell
    if isinstance(own, CellFunction) and own.is_julia != engine.runs_julia:
        what, other = ("Julia code", "julia") if own.is_julia else ("a Python function", "jax")
        return (
            f"The {engine.name} engine does not have a cell that is {what}; the {other} engine has"
        )
    is_unrolled = solver.adjoint == "unrolled" and model.horizon is None
    for asked, value, available in (
        ("solver", solver.name, engine.solvers),
        ("stability", model.stability, engine.stabilities),
        ("adjoint='unrolled' for solver", solver.name, engine.unrolls if is_unrolled else None),
    ):
        if available is not None and value not in available:
            has = ", ".join(map(repr, dict.fromkeys(available)))
            missing = f"The {engine.name} engine does not have {asked}={value!r}; it has {has}"
            return missing + (_IN_JULIA if value in ODE_METHODS else "")
    return ""


_IN_JULIA = (
    ". The methods of OrdinaryDiffEq are the Julia engine's: `pydeq julia install` sets it up, "
    "`pydeq julia status` says what it lacks"
)


def check_supported(engine: type[AbstractEngine], model: ModelSpec, solver: SolverSpec) -> None:
    """Raise ValueError where `engine` has not what is asked for; the message says what it has."""
    if missing := what_is_missing(engine, model, solver):
        raise ValueError(f"{missing}. Choose one of these, or another engine.")
