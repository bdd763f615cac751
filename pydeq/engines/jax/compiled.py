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

from pydeq.engines.jax.adjoint import find_equilibrium, jacobian_estimate, steady_state
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
    "acting_layers",
    "batch_gradient",
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


def _is_encoder(name: str) -> bool:
    return name.startswith("encoder.")


def residual(solution: Solution) -> jax.Array:
    """Return the residual per sample; the twin of :func:`pydeq.model.metrics.residual`."""
    eps = jnp.finfo(solution.u.dtype).eps
    size = jnp.max(jnp.abs(solution.fu), axis=1)
    return jnp.max(jnp.abs(solution.fu - solution.u), axis=1) / jnp.maximum(size, eps)


def _states(program: Program, layers, h, active, controls: Controls) -> Solution:
    """Return the states that the loss is a function of, differentiable."""
    model = program.model
    if model.horizon is not None:
        return integrate(Field(model, layers), h, active, controls, program.unroll or 1)
    if program.adjoint == "unrolled":
        return find_equilibrium(program.solver, model, layers, h, active, controls, program.unroll)
    return steady_state(program.solver, program.adjoint, model, layers, h, active, controls)


def _batch_loss(params, program: Program, batch: Batch, controls: Controls, rates: Rates):
    """Return the loss of one batch, penalties included, and (solution, weights that counted)."""
    model = program.model
    if not program.train_encoder:
        params = {k: jax.lax.stop_gradient(p) if _is_encoder(k) else p for k, p in params.items()}
    active = batch.weight > 0
    h = encode(model, params, batch.x)
    layers = cell_layers(model, params)
    solution = _states(program, layers, h, active, controls)
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
    batch: Batch,
    controls: Controls,
    rates: Rates,
):
    """Take one optimiser step; return weights, optimiser state and the batch's numbers ``(7,)``.

    The numbers are those of :class:`pydeq.engines.BatchReport`, in its order. A batch that no
    sample of counts changes nothing.
    """
    (loss, (solution, weight)), grads = jax.value_and_grad(_batch_loss, has_aux=True)(
        params, program, batch, controls, rates
    )
    updates: Any
    updates, stepped = optax.adam(rates.learning_rate).update(grads, opt_state, params)
    if not program.train_encoder:  # its gradient is 0, but Adam may remember another
        updates = {k: jnp.zeros_like(u) if _is_encoder(k) else u for k, u in updates.items()}
    total = weight.sum()
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(total > 0, new, old),
        (optax.apply_updates(params, updates), stepped),
        (params, opt_state),
    )
    return params, opt_state, _report(batch, loss, grads, solution, weight)


def _report(batch: Batch, loss, grads, solution: Solution, weight) -> jax.Array:
    """Return the numbers of a :class:`pydeq.engines.BatchReport` as one array."""
    active = batch.weight > 0
    res = residual(solution)
    numbers = (
        loss,
        weight.sum(),
        optax.tree.norm(grads),
        solution.n_evals.sum(),
        active.sum(),
        jnp.max(jnp.where(active, jnp.where(jnp.isnan(res), jnp.inf, res), 0)),
        (active & ~solution.converged).sum(),
    )
    return jnp.stack([jnp.asarray(number, loss.dtype) for number in numbers])


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
