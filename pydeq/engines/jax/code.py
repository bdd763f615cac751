"""What decides the code that is compiled, apart from the shapes of its arrays."""

from dataclasses import dataclass, replace
from functools import cached_property

from pydeq.cell_function import CellFunction
from pydeq.model import Adjoint, Loss, ModelSpec, OptimizerSpec, Solver, SolverSpec

__all__ = ["Code"]

SMALL_JOB, LARGE_JOB = 1_000, 10_000
"""Rows up to which a job should compile in little time, and from which it should run in little.

On a CPU a small job is compiled by XLA's older emitters: in two thirds of the time, to code that
takes a tenth longer. In a large one a search goes on in smaller batches, each with its copy of the
loop, and a step is one program.
"""


@dataclass(frozen=True)
class Code:
    """What decides the compiled code, apart from the shapes.

    Attributes
    ----------
    model : ModelSpec
        With standard values in the place of numbers that are arguments.
    solver : str
    quick : bool
        Whether to compile in little time.
    compact : bool
        Whether a search goes on in smaller batches when most of its samples are done.
    adjoint : str
    unroll : int or None
        Bound on the steps of what is differentiated step by step.
    loss : str
    is_fixed : bool
        Whether the state is what `unroll` steps make, an equilibrium or not.
    """

    model: ModelSpec
    solver: Solver
    quick: bool
    compact: bool
    adjoint: Adjoint
    unroll: int | None
    loss: Loss
    is_fixed: bool = False

    @classmethod
    def of(cls, model: ModelSpec, solver: SolverSpec, optimizer: OptimizerSpec) -> "Code":
        """Return the code of these specs."""
        through = solver.adjoint == "unrolled" or model.horizon is not None
        return cls(
            model=replace(model, contraction=0.5, horizon=None if model.horizon is None else 1.0),
            solver=solver.name,
            quick=False,
            compact=False,
            adjoint=solver.adjoint,
            unroll=solver.max_steps if through else None,
            loss=optimizer.loss,
        )

    @property
    def is_kept(self) -> bool:
        """Whether the cache for other processes may keep it: of a function they know no more."""
        return not isinstance(self.model.cell, CellFunction)

    def of_depth(self, depth: int) -> "Code":
        """Return the same for a state that is what so many steps u <- f(u, h) make."""
        return replace(self, solver="fixed_point", adjoint="unrolled", unroll=depth, is_fixed=True)

    def of_job(self, n_samples: int) -> "Code":
        """Return the same for a job of so many samples."""
        if n_samples >= LARGE_JOB:
            return self._large
        return self._small if n_samples <= SMALL_JOB else self

    @cached_property
    def _small(self) -> "Code":
        return replace(self, quick=True)

    @cached_property
    def _large(self) -> "Code":
        return replace(self, compact=True)

    @cached_property
    def acting(self) -> "Code":
        """The same without what `act` does not see; products are most of its work."""
        model = replace(self.search.model, activation="identity", horizon=None)
        code = replace(self.search, model=model, solver="fixed_point", unroll=None)
        return replace(code, quick=True, compact=False)

    @cached_property
    def cell(self) -> "Code":
        """The same without what `start` and `apply_cell` do not see."""
        return replace(self.search, solver="fixed_point", unroll=None, compact=False)

    @cached_property
    def search(self) -> "Code":
        """The same without what `search` does not see."""
        stability = "none" if self.model.stability == "jacobian" else self.model.stability
        return replace(
            self,
            model=replace(self.model, stability=stability),
            adjoint="jfb",
            unroll=self.unroll if self.model.horizon is not None else None,
            loss="squared_error",
            is_fixed=False,
        )

    @cached_property
    def step(self) -> "Code":
        """The same without what `step` does not see."""
        solver = self.solver if self.unroll is not None else "fixed_point"
        return replace(self, solver=solver, compact=False)
