"""A plain JAX program: optimistix's fixed_point, optax's Adam, one jitted step a batch.

A batch is mapped over (vmap), so that each sample ends by itself: the batch as one unknown, which
one may write first, makes ImplicitAdjoint's linear system 12,800 x 12,800. The linear solver is
lineax's GMRES, which needs no Jacobian; ImplicitAdjoint's default builds each sample's 100 x 100
one, from a hundred products. The search ends at |change| <= reltol (1 + |z|), entry by entry, which
is the common rule where the states are of order 1: rtol alone would hold every entry, also one that
is almost 0, to its own size.
"""

from typing import Any, final

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import optimistix as optx

from contestants.task import Task
from contestants.worker import AbstractContestant, Predicted, Trained
from pydeq.model import Params, iter_batches

CHUNK = 1000
MAX_STEPS = 256


def _cell(params, v):
    hidden = jnp.tanh(v @ params["cell.0.weight"] + params["cell.0.bias"])
    return hidden @ params["cell.1.weight"] + params["cell.1.bias"]


def _solve(params, x, tolerance):
    """Return states, outputs and evaluations of a batch."""
    h = x @ params["encoder.weight"] + params["encoder.bias"]
    solver = optx.FixedPointIteration(rtol=tolerance, atol=tolerance)
    adjoint = optx.ImplicitAdjoint(linear_solver=lx.GMRES(rtol=1e-3, atol=1e-6))

    def one(h):
        found = optx.fixed_point(
            lambda z, args: _cell(args[0], z + args[1]),
            solver,
            jnp.zeros_like(h),
            args=(params, h),
            adjoint=adjoint,
            max_steps=MAX_STEPS,
            throw=False,
        )
        return found.value, found.stats["num_steps"]

    z, steps = jax.vmap(one)(h)
    return z, z @ params["decoder.weight"] + params["decoder.bias"], steps


def _loss(params, x, y, weight, tolerance):
    _, output, steps = _solve(params, x, tolerance)
    each = optax.softmax_cross_entropy_with_integer_labels(output, y)
    return weight @ each / weight.sum(), jnp.sum(weight * steps)


@final
class Contestant(AbstractContestant):
    """Parameters and optimiser state on the device, a batch gathered there."""

    form = "mlp tanh"

    def __init__(self, task: Task, settings: dict[str, Any]) -> None:
        self._params = {name: jnp.asarray(value) for name, value in task.params.items()}
        optimizer = optax.adam(task.learning_rate)
        self._state = optimizer.init(self._params)
        self._x, self._y = jnp.asarray(task.x), jnp.asarray(task.y, jnp.int32)
        self._batch_size, self._tolerance = task.batch_size, task.reltol
        self._solve = jax.jit(_solve)

        @jax.jit
        def step(params, state, x, y, index, weight):
            (loss, evals), grads = jax.value_and_grad(_loss, has_aux=True)(
                params, x[index], y[index], weight, task.reltol
            )
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, loss * weight.sum(), evals

        self._step = step

    def train(self, order: np.ndarray) -> Trained:
        """See :class:`AbstractContestant`."""
        losses, evals = [], []
        for index in iter_batches(order, self._batch_size):
            padded = np.zeros(self._batch_size, np.int32)
            padded[: len(index)] = index
            weight = (np.arange(self._batch_size) < len(index)).astype(np.float32)
            self._params, self._state, loss, n = self._step(
                self._params, self._state, self._x, self._y, padded, weight
            )
            losses.append(loss)
            evals.append(n)
        n = len(order)
        # GMRES does not tell how many products it took.
        return Trained(float(sum(losses)) / n, float(sum(evals)) / n, np.nan)

    def settle(self, trained: Trained) -> Trained:
        """See :class:`AbstractContestant`."""
        return trained

    def predict(self, x: np.ndarray) -> Predicted:
        """See :class:`AbstractContestant`."""
        parts = [
            [np.asarray(a) for a in self._solve(self._params, x[i : i + CHUNK], self._tolerance)]
            for i in range(0, len(x), CHUNK)
        ]
        state, output, steps = (np.concatenate(each) for each in zip(*parts, strict=True))
        return Predicted(state, output, float(steps.mean()))

    def weights(self) -> Params:
        """See :class:`AbstractContestant`."""
        return {name: np.array(value) for name, value in self._params.items()}
