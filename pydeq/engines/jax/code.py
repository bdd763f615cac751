"""What decides the code that is compiled, apart from the shapes of its arrays."""

from dataclasses import dataclass, replace
from functools import cached_property

from pydeq.model import Adjoint, Loss, ModelSpec, OptimizerSpec, Solver, SolverSpec

__all__ = ["Code"]


@dataclass(frozen=True)
class Code:
    """What decides the compiled code, apart from the shapes.

    Attributes
    ----------
    model : ModelSpec
        With standard values in the place of numbers that are arguments.
    solver : str
    compact : bool
        Whether a search goes on in smaller batches when most of its samples are done.
    adjoint : str
    unroll : int or None
        Bound on the steps of what is differentiated step by step.
    loss : str
    """

    model: ModelSpec
    solver: Solver
    compact: bool
    adjoint: Adjoint
    unroll: int | None
    loss: Loss

    @classmethod
    def of(cls, model: ModelSpec, solver: SolverSpec, optimizer: OptimizerSpec) -> "Code":
        """Return the code of these specs."""
        through = solver.adjoint == "unrolled" or model.horizon is not None
        return cls(
            model=replace(model, contraction=0.5, horizon=None if model.horizon is None else 1.0),
            solver=solver.name,
            compact=False,
            adjoint=solver.adjoint,
            unroll=solver.max_steps if through else None,
            loss=optimizer.loss,
        )

    @cached_property
    def acting(self) -> "Code":
        """The same without what `act` does not see."""
        model = replace(self.search.model, activation="identity", horizon=None)
        return replace(self.search, model=model, solver="fixed_point", unroll=None)

    @cached_property
    def cell(self) -> "Code":
        """The same without what `start` and `apply_cell` do not see."""
        return replace(self.search, solver="fixed_point", unroll=None)

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
        )

    @cached_property
    def compact_search(self) -> "Code":
        """The same for a job that is large enough."""
        return replace(self.search, compact=True)

    @cached_property
    def training(self) -> "Code":
        """The same without what `step` does not see."""
        solver = self.solver if self.unroll is not None else "fixed_point"
        return replace(self, solver=solver)

    @cached_property
    def whole_step(self) -> "Code":
        """The same for a job that is large enough."""
        return replace(self, compact=True)
