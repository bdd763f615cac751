"""What is compiled: one optimiser step, the loss with its gradient, the equilibria, the iterates.

Each function is compiled once for a :class:`Program` and the shapes of its arrays, and shared by
all sessions of the process; numbers such as tolerances and rates are arguments.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pydeq.engines.jax.adjoint import Start, find_equilibrium, jacobian_estimate, steady_state
from pydeq.engines.jax.cell import (
    Layers,
    cell,
    cell_layers,
    decode,
    encode,
    loss_value,
    weight_penalty,
)
from pydeq.engines.jax.horizon import integrate
from pydeq.engines.jax.solvers import Controls, Field, Solution
from pydeq.model import ModelSpec, OptimizerSpec, SolverSpec

__all__ = [
    "Batch",
    "Program",
    "Rates",
    "Tally",
    "acting_layers",
    "batch_gradient",
    "empty_tally",
    "iterates",
    "rows",
    "search",
    "train",
]


@dataclass(frozen=True)
class Program:
    """What decides the compiled code, apart from the shapes."""

    model: ModelSpec
    solver: str
    adjoint: str
    unroll: int | None
    loss: str
    optimizer: str
    train_encoder: bool

    @classmethod
    def of(cls, model: ModelSpec, solver: SolverSpec, optimizer: OptimizerSpec) -> "Program":
        """Return the program of these specs."""
        bounded = solver.adjoint == "unrolled" or model.horizon is not None
        return cls(
            model=model,
            solver=solver.name,
            adjoint=solver.adjoint,
            unroll=solver.max_steps if bounded else None,
            loss=optimizer.loss,
            optimizer=optimizer.name,
            train_encoder=optimizer.train_encoder or model.n_state is None,
        )


class Rates(NamedTuple):
    """The numbers of :class:`pydeq.model.spec.OptimizerSpec`."""

    learning_rate: float
    alpha: float
    jacobian_penalty: float


class Batch(NamedTuple):
    """B samples; those of weight 0 (padding among them) take no part."""

    x: jax.Array  # (B, n_features)
    target: jax.Array  # (B, n_outputs)
    weight: jax.Array  # (B,)
    probe: jax.Array  # (n_state,)
    start: Start | None = None


class Tally(NamedTuple):
    """Sums over the batches of an epoch, to be read once at its end."""

    loss: jax.Array
    weight: jax.Array
    grad_norm: jax.Array
    n_steps: jax.Array
    n_evals: jax.Array
    n_samples: jax.Array
    worst_residual: jax.Array
    n_failed: jax.Array


def optimizer(name: str, learning_rate) -> optax.GradientTransformation:
    """Return optax's optimiser of that name."""
    return optax.adam(learning_rate) if name == "adam" else optax.sgd(learning_rate)


def _is_encoder(name: str) -> bool:
    return name.startswith("encoder.")


def residual(solution: Solution) -> jax.Array:
    """Return the residual per sample; the twin of :func:`pydeq.model.metrics.residual`."""
    eps = jnp.finfo(solution.u.dtype).eps
    size = jnp.max(jnp.abs(solution.fu), axis=1)
    return jnp.max(jnp.abs(solution.fu - solution.u), axis=1) / jnp.maximum(size, eps)


def _states(
    program: Program, layers, h, active, controls: Controls, start: Start | None
) -> Solution:
    """Return the states that the loss is a function of, differentiable."""
    model = program.model
    if model.horizon is not None:
        return integrate(Field(model, layers), h, active, controls, program.unroll or 1)
    if program.adjoint == "unrolled":
        return find_equilibrium(
            program.solver, model, layers, h, active, controls, start, program.unroll
        )
    return steady_state(program.solver, program.adjoint, model, layers, h, active, controls, start)


def _batch_loss(params, program: Program, batch: Batch, controls: Controls, rates: Rates):
    """Return the loss of one batch, penalties included, and (solution, weights that counted)."""
    model = program.model
    if not program.train_encoder:
        params = {k: jax.lax.stop_gradient(p) if _is_encoder(k) else p for k, p in params.items()}
    active = batch.weight > 0
    h = encode(model, params, batch.x)
    layers = cell_layers(model, params)
    solution = _states(program, layers, h, active, controls, batch.start)
    counts = solution.converged
    if program.adjoint == "unrolled" and model.horizon is None:
        counts = jnp.all(jnp.isfinite(solution.u) & jnp.isfinite(solution.fu), axis=1)
    weight = jnp.where(counts, batch.weight, 0)
    # 0 * inf is nan: what does not count must not reach the loss at all.
    u, target = (jnp.where((weight > 0)[:, None], a, 0) for a in (solution.u, batch.target))
    loss = loss_value(program.loss, decode(model, params, u), target, weight)
    loss = loss + rates.alpha * weight_penalty(params, weight)
    if model.stability == "jacobian":
        z = jax.lax.stop_gradient(u)
        estimate = jacobian_estimate(model, layers, z, h, batch.probe)
        mean = weight @ estimate / jnp.where(weight.sum() > 0, weight.sum(), 1)
        loss = loss + rates.jacobian_penalty * mean / model.state_width
    return loss, (solution, weight)


@jax.jit
def rows(index: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Return the rows at `index` of each array."""
    return tuple(jnp.take(a, index, axis=0, mode="clip") for a in arrays)


@partial(jax.jit, static_argnums=0)
def batch_gradient(program: Program, params, batch: Batch, controls: Controls, rates: Rates):
    """Return the loss of one batch and its gradient."""
    (loss, _), grads = jax.value_and_grad(_batch_loss, has_aux=True)(
        params, program, batch, controls, rates
    )
    return loss, grads


@partial(jax.jit, static_argnums=0)
def train(
    program: Program,
    params,
    opt_state,
    tally: Tally,
    batch: Batch,
    controls: Controls,
    rates: Rates,
):
    """Take one optimiser step and add the batch to the tally.

    A batch that no sample of counts changes nothing. The equilibria come back too.
    """
    (loss, (solution, weight)), grads = jax.value_and_grad(_batch_loss, has_aux=True)(
        params, program, batch, controls, rates
    )
    updates: Any
    updates, stepped = optimizer(program.optimizer, rates.learning_rate).update(
        grads, opt_state, params
    )
    if not program.train_encoder:  # its gradient is 0, but an optimiser may remember another
        updates = {k: jnp.zeros_like(u) if _is_encoder(k) else u for k, u in updates.items()}
    total = weight.sum()
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(total > 0, new, old),
        (optax.apply_updates(params, updates), stepped),
        (params, opt_state),
    )
    tally = _add(program, tally, batch, loss, grads, solution, weight)
    return params, opt_state, tally, Start(solution.u, solution.converged)


def empty_tally(dtype) -> Tally:
    """Return the tally of no batch."""
    real, count = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
    return Tally(real, real, real, count, real, count, real, count)


def _add(program, tally: Tally, batch: Batch, loss, grads, solution: Solution, weight) -> Tally:
    """Add one batch to the tally."""
    active = batch.weight > 0
    total = weight.sum()
    res = residual(solution)
    worst = jnp.max(jnp.where(active, jnp.where(jnp.isnan(res), jnp.inf, res), 0))
    is_sum = program.loss == "sum_of_squares"
    return Tally(
        loss=tally.loss + jnp.where(total > 0, loss * (1 if is_sum else total), 0),
        weight=tally.weight + total,
        grad_norm=tally.grad_norm + jnp.where(total > 0, optax.tree.norm(grads), 0),
        n_steps=tally.n_steps + (total > 0),
        n_evals=tally.n_evals + solution.n_evals.sum(dtype=total.dtype),
        n_samples=tally.n_samples + active.sum(dtype=jnp.int32),
        worst_residual=jnp.maximum(tally.worst_residual, worst),
        n_failed=tally.n_failed + (active & ~solution.converged).sum(dtype=jnp.int32),
    )


acting_layers = jax.jit(cell_layers, static_argnums=0)
"""The cell's layers as they act, once for all that is predicted with them."""


@partial(jax.jit, static_argnums=(0, 1, 2))
def search(
    model: ModelSpec,
    solver: str,
    max_steps: int | None,
    params,
    layers: Layers,
    x: jax.Array,
    active: jax.Array,
    controls: Controls,
):
    """Return state, output, residual, evaluations and convergence of the samples `x`.

    `max_steps` is that of a finite horizon, else None: it is compiled in there.
    """
    h = encode(model, params, x)
    if max_steps is None:
        solution = find_equilibrium(solver, model, layers, h, active, controls)
    else:
        solution = integrate(Field(model, layers), h, active, controls, max_steps)
    output = decode(model, params, solution.u)
    return solution.u, output, residual(solution), solution.n_evals, solution.converged


@partial(jax.jit, static_argnums=(0, 3))
def iterates(model: ModelSpec, params, x: jax.Array, depth: int) -> jax.Array:
    """Return the fixed-point iterates from f(0, h): ``(depth + 1, n, n_state)``."""
    h = encode(model, params, x)
    layers = cell_layers(model, params)
    start = cell(model, layers, jnp.zeros_like(h), h)

    def step(u, _):
        return cell(model, layers, u, h), u

    last, before = jax.lax.scan(step, start, length=depth)
    return jnp.concatenate([before, last[None]])
