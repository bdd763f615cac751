"""What is compiled: the parameters as they act, the equilibria, one optimiser step, the cell.

Each is compiled once for what decides its code and the shapes of its arrays, and shared by all
sessions of the process; numbers such as tolerances and rates are arguments. All return flat tuples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pydeq.engines.jax import layers
from pydeq.engines.jax.adjoint import jacobian_estimate, solve_adjoint
from pydeq.engines.jax.batches import Batch
from pydeq.engines.jax.cell import (
    Acting,
    cell,
    cell_weights,
    decode,
    encode,
    first_guess,
    loss_value,
    positive,
)
from pydeq.engines.jax.code import Code
from pydeq.engines.jax.horizon import integrate
from pydeq.engines.jax.optimizer import AdamState, Rates, adam, trained_elements, with_decay
from pydeq.engines.jax.programs import Program
from pydeq.engines.jax.solvers import Controls, Field, Solution, find_equilibrium
from pydeq.engines.jax.vectors import Vectors, from_vectors, to_vectors
from pydeq.layers import Dense
from pydeq.model import ModelSpec

__all__ = [
    "Found",
    "Stepped",
    "act",
    "apply_cell",
    "jvp",
    "search",
    "share",
    "start",
    "step",
    "stepped",
    "update",
    "whole_step",
]


class Found(NamedTuple):
    """What `search` returns."""

    u: jax.Array  # (B, n_state)
    output: jax.Array  # (B, n_outputs)
    residual: jax.Array  # (B,)
    n_evals: jax.Array  # (B,) int32
    converged: jax.Array  # (B,) bool
    h: jax.Array  # (B, n_state)


class Stepped(NamedTuple):
    """What `step` returns, once `stepped` has given it its shape."""

    state: AdamState
    gradient: Vectors
    report: jax.Array  # (7,): a BatchReport


@Program
def act(code: Code, theta: Vectors, contraction: jax.Array) -> tuple[jax.Array, ...]:
    """Return the parameters as they act, in the order of `layers.acting_names`."""
    acting = layers.act(code.model, from_vectors(code.model, theta), contraction)
    return tuple(acting[name] for name in layers.acting_names(code.model))


@Program
def search(
    code: Code, acting: Acting, x: jax.Array, weight: jax.Array, controls: Controls
) -> Found:
    """Search the equilibria of the samples `x` that have a weight."""
    model, active = code.model, weight > 0
    h = encode(model, acting, x)
    field, u0 = Field(model, cell_weights(acting)), first_guess(model, acting, h)
    if model.horizon is not None:
        solution = integrate(field, u0, h, active, controls, code.unroll or 1)
    else:
        solution = find_equilibrium(code.solver, field, u0, h, active, controls, code.compact)
    return _found(model, acting, h, solution)


def _found(model: ModelSpec, acting: Acting, h: jax.Array, s: Solution) -> Found:
    """Add output and residual; the twin of :func:`pydeq.model.residual`."""
    eps = jnp.finfo(s.u.dtype).eps
    size = jnp.maximum(jnp.max(jnp.abs(s.fu), axis=1), eps)
    residual = jnp.max(jnp.abs(s.fu - s.u), axis=1) / size
    return Found(s.u, decode(model, acting, s.u), residual, s.n_evals, s.converged, h)


@Program
def step(
    code: Code,
    state: AdamState,
    acting: Acting,
    batch: Batch,
    found: Found | None,
    controls: Controls,
    rates: Rates,
) -> tuple[jax.Array, ...]:
    """Take one optimiser step; a batch that no sample of counts changes nothing.

    `found` is None where the gradient goes through the search, which is then done here.
    """
    loss, grads, found, weight = _gradient(code, state.theta, acting, batch, found, controls, rates)
    tally, worst = _tally(batch, found)
    return _stepped_by(code, state, loss, grads, weight.sum(), tally, worst, rates)


@Program
def whole_step(
    code: Code,
    state: AdamState,
    contraction: jax.Array,
    batch: Batch,
    controls: Controls,
    rates: Rates,
) -> tuple[jax.Array, ...]:
    """Do what `act`, `search` and `step` do, as one program: it takes 0.9 of their time."""
    acting = layers.act(code.model, from_vectors(code.model, state.theta), contraction)
    found = None
    if code.unroll is None:
        found = search.function(code, acting, batch.x, batch.weight, controls)
    return step.function(code, state, acting, batch, found, controls, rates)


@Program
def share(
    code: Code,
    theta: Vectors,
    acting: Acting,
    batch: Batch,
    found: Found | None,
    controls: Controls,
    rates: Rates,
) -> tuple[jax.Array, jax.Array]:
    """Return one device's share of a step: sums ``(1, P + 5)`` over its samples, worst residual.

    The sums are the gradient, the loss, the weights, and the counts of a report.
    """
    loss, grads, found, weight = _gradient(code, theta, acting, batch, found, controls, rates)
    tally, worst = _tally(batch, found)
    total = weight.sum()
    numbers = jnp.stack([total * loss, total, *tally])
    return jnp.concatenate([*(total * g for g in grads), numbers])[None], worst[None]


@Program
def update(
    code: Code, state: AdamState, sums: jax.Array, worst: jax.Array, rates: Rates
) -> tuple[jax.Array, ...]:
    """Take the step whose shares have the sums ``(P + 5,)``; returns what `step` does."""
    ends = np.cumsum([vector.size for vector in state.theta])
    *grads, numbers = jnp.split(sums, ends)
    loss, total, *tally = numbers
    grads = tuple(g / positive(total) for g in grads)
    loss = loss / positive(total)
    return _stepped_by(code, state, loss, grads, total, tally, worst, rates)


def _gradient(
    code: Code,
    theta: Vectors,
    acting: Acting,
    batch: Batch,
    found: Found | None,
    controls: Controls,
    rates: Rates,
) -> tuple[jax.Array, Vectors, Found, jax.Array]:
    """Return loss, gradient, the equilibria and the weights that counted; no L2 penalty."""
    if found is None:
        loss, grads, found, weight = _gradient_through(code, acting, batch, controls, rates)
    else:
        loss, grads, weight = _gradient_at(code, acting, batch, found, controls, rates)
    grads = layers.pull_back(code.model, from_vectors(code.model, theta), acting, grads)
    return loss, to_vectors(code.model, grads), found, weight


def _stepped_by(
    code: Code,
    state: AdamState,
    loss: jax.Array,
    grads: Vectors,
    total: jax.Array,
    tally: Sequence[jax.Array],
    worst: jax.Array,
    rates: Rates,
) -> tuple[jax.Array, ...]:
    """Take a step by the gradient of a batch whose weights come to `total`."""
    trained = trained_elements(code.model, rates)
    decay = rates.alpha / positive(total)
    loss, gradient = with_decay(code.model, state.theta, grads, trained, loss, decay)
    new = adam(state, gradient, trained, rates.learning_rate, total > 0)
    n_evals, n_samples, n_failed = tally
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in gradient))
    report = jnp.stack([loss, total, norm, n_evals, n_samples, worst, n_failed])
    return *new.theta, *new.mean, *new.square, *gradient, new.count, report


def stepped(arrays: Sequence[jax.Array]) -> Stepped:
    """Return what `step` returned by name."""
    *vectors, count, report = arrays
    n = len(vectors) // 4
    theta, mean, square, gradient = (tuple(vectors[i * n : (i + 1) * n]) for i in range(4))
    return Stepped(AdamState(theta, mean, square, count), gradient, report)


def _gradient_at(
    code: Code,
    acting: Acting,
    batch: Batch,
    found: Found,
    controls: Controls,
    rates: Rates,
) -> tuple[jax.Array, Acting, jax.Array]:
    """Return loss, gradient by what acts, and the weights that counted, at the equilibria found.

    Samples that did not converge give no gradient.
    """
    model = code.model
    weight = jnp.where(found.converged, batch.weight, 0)
    valid = weight > 0
    # 0 * nan is nan: what does not count must not reach the loss at all.
    u, h = (jnp.where(valid[:, None], a, 0) for a in (found.u, found.h))
    loss, grads, g = _output_loss(code, acting, batch, u, weight)
    start = _init_loss(model, acting, u, h, weight, rates)
    loss, grads, g = loss + start.loss, grads | start.to_init, g + start.to_u
    weights = cell_weights(acting)
    if code.adjoint == "implicit":
        g = solve_adjoint(Field(model, weights), u, h, g, valid, controls)

    def along(weights: Acting, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        penalty = _penalty(model, weights, u, h, batch, weight, rates)
        return jnp.sum(g * cell(model, weights, u, h)) + penalty, penalty

    (to_cell, to_h), penalty = jax.grad(along, (0, 1), has_aux=True)(weights, h)
    to_encoder = _to_encoder(model, acting, batch.x, to_h + start.to_h)
    return loss + penalty, grads | to_cell | to_encoder, weight


def _gradient_through(
    code: Code, acting: Acting, batch: Batch, controls: Controls, rates: Rates
) -> tuple[jax.Array, Acting, Found, jax.Array]:
    """Search, and differentiate the search step by step; see `_gradient_at`."""
    model = code.model
    active = batch.weight > 0
    h = encode(model, acting, batch.x)
    weights = cell_weights(acting) | _named(acting, "init.")

    def states(weights: Acting, h: jax.Array) -> tuple[jax.Array, Solution]:
        field, n_steps = Field(model, cell_weights(weights)), code.unroll or 1
        given = field, first_guess(model, weights, h), h, active, controls
        if model.horizon is not None:
            solution = integrate(*given, n_steps)
        else:
            solution = find_equilibrium(code.solver, *given, unroll=n_steps)
        return solution.u, solution

    u, pull, solution = jax.vjp(states, weights, h, has_aux=True)
    counts = solution.converged
    if model.horizon is None:
        counts = jnp.all(jnp.isfinite(u) & jnp.isfinite(solution.fu), axis=1)
    if code.is_fixed:
        solution = solution._replace(converged=counts)
    weight = jnp.where(counts, batch.weight, 0)
    u = jnp.where((weight > 0)[:, None], u, 0)
    loss, grads, g = _output_loss(code, acting, batch, u, weight)
    start = _init_loss(model, acting, u, h, weight, rates)
    to_cell, to_h = pull(g + start.to_u)
    loss, to_h = loss + start.loss, to_h + start.to_h
    to_cell |= {name: to_cell[name] + more for name, more in start.to_init.items()}
    if model.stability == "jacobian":

        def penalty(weights: Acting, h: jax.Array) -> jax.Array:
            return _penalty(model, cell_weights(weights), u, h, batch, weight, rates)

        value, more = jax.value_and_grad(penalty, (0, 1))(weights, h)
        loss = loss + value
        to_cell, to_h = jax.tree.map(jnp.add, (to_cell, to_h), more)
    grads |= to_cell | _to_encoder(model, acting, batch.x, to_h)
    return loss, grads, _found(model, acting, h, solution), weight


def _output_loss(
    code: Code, acting: Acting, batch: Batch, u: jax.Array, weight: jax.Array
) -> tuple[jax.Array, Acting, jax.Array]:
    """Return the loss of the states `u`, its gradient by the decoder, and that by `u`."""
    decoder = _named(acting, "decoder.")
    target = batch.target
    if target.ndim == 2:
        target = jnp.where((weight > 0)[:, None], target, 0)

    def loss(decoder: Acting, u: jax.Array) -> jax.Array:
        return loss_value(code.loss, decode(code.model, decoder, u), target, weight)

    value, (to_decoder, to_u) = jax.value_and_grad(loss, (0, 1))(decoder, u)
    return value, to_decoder, to_u


class _InitLoss(NamedTuple):
    """The penalty of a first guess's distance from the states, and its gradients."""

    loss: jax.Array | float
    to_init: Acting
    to_u: jax.Array | float
    to_h: jax.Array | float


def _init_loss(
    model: ModelSpec, acting: Acting, u: jax.Array, h: jax.Array, weight: jax.Array, rates: Rates
) -> _InitLoss:
    """Return the penalty of :class:`pydeq.model.OptimizerSpec`; 0 where the guess has no weights.

    With the implicit adjoint it is all that the guess learns from: an equilibrium does not depend
    on where its search began.
    """
    if not model.learns_init:
        return _InitLoss(0.0, {}, 0.0, 0.0)

    def loss(init: Acting, u: jax.Array, h: jax.Array) -> jax.Array:
        squares = ((u - first_guess(model, init, h)) ** 2).mean(axis=1)
        return rates.init_penalty * (weight @ squares) / positive(weight.sum())

    value, gradients = jax.value_and_grad(loss, (0, 1, 2))(_named(acting, "init."), u, h)
    return _InitLoss(value, *gradients)


def _penalty(
    model: ModelSpec,
    weights: Acting,
    u: jax.Array,
    h: jax.Array,
    batch: Batch,
    weight: jax.Array,
    rates: Rates,
) -> jax.Array:
    """Return the Jacobian penalty at the states `u`, which it holds constant."""
    if model.stability != "jacobian":
        return jnp.zeros((), u.dtype)
    estimate = jacobian_estimate(Field(model, weights), u, h, batch.probe)
    mean = weight @ estimate / positive(weight.sum())
    return rates.jacobian_penalty * mean / model.state_width


def _to_encoder(model: ModelSpec, acting: Acting, x: jax.Array, to_h: jax.Array) -> Acting:
    """Return the gradient by the encoder, by name."""
    if [type(placed.layer) for placed in model.network.encoder] == [Dense]:
        # One product; differentiated, it is one that is transposed afterwards.
        return {"encoder.weight": x.T @ to_h, "encoder.bias": to_h.sum(axis=0)}
    encoder = _named(acting, "encoder.")
    _, pull = jax.vjp(lambda encoder: encode(model, encoder, x), encoder)
    return pull(to_h)[0]


def _named(acting: Acting, prefix: str) -> Acting:
    return {name: value for name, value in acting.items() if name.startswith(prefix)}


def _tally(batch: Batch, found: Found) -> tuple[list[jax.Array], jax.Array]:
    """Return evaluations, samples and failures, which add up, and the worst residual."""
    active = batch.weight > 0
    residual = jnp.where(jnp.isnan(found.residual), jnp.inf, found.residual)
    counts = (found.n_evals.sum(), active.sum(), (active & ~found.converged).sum())
    dtype = batch.weight.dtype
    return [jnp.asarray(c, dtype) for c in counts], jnp.max(jnp.where(active, residual, 0))


@Program
def apply_cell(code: Code, acting: Acting, u: jax.Array, h: jax.Array) -> tuple[jax.Array]:
    """Return f(u, h)."""
    return (cell(code.model, cell_weights(acting), u, h),)


@Program
def jvp(
    code: Code, acting: Acting, x: jax.Array, u: jax.Array, tangent: jax.Array
) -> tuple[jax.Array]:
    """Return (df/du) t at the states `u` of the samples `x`."""
    h, weights = encode(code.model, acting, x), cell_weights(acting)
    return (jax.jvp(lambda u: cell(code.model, weights, u, h), (u,), (tangent,))[1],)


@Program
def start(code: Code, acting: Acting, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return u(0) of the samples `x`, and h."""
    h = encode(code.model, acting, x)
    return first_guess(code.model, acting, h), h
