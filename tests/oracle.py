"""A numpy float64 engine that is plain enough to be believed: what the real engines are held to.

It meets the contract of ``pydeq.engines.base`` with float32 input too: it works in float64 and
casts its results back. Its equilibria are exact, whatever tolerances are asked for, so an engine
equals it at tight tolerances only.
"""

import copy

import numpy as np
import oracle_math as om

from pydeq.engines import AbstractEngine, AbstractSession, BatchReport, epoch_report
from pydeq.model import SOLVERS, STABILITIES, Equilibrium, iter_batches, metrics, probes

ADAM_BETA1, ADAM_BETA2, ADAM_EPS = 0.9, 0.999, 1e-8


def as_float64(arrays):
    """Return a float64 copy of named arrays."""
    return {name: np.array(value, np.float64) for name, value in arrays.items()}


class OracleSession(AbstractSession):
    def __init__(self, model, solver, optimizer, params, optimizer_state):
        self._model, self._solver, self._optimizer = model, solver, optimizer
        self._dtype = next(iter(params.values())).dtype
        self._params = as_float64(params)
        self._count = 0
        self._m = {name: np.zeros_like(value) for name, value in self._params.items()}
        self._v = copy.deepcopy(self._m)
        if optimizer_state:
            self._count = int(optimizer_state["count"])
            for name in self._params:
                self._m[name] = np.array(optimizer_state[f"m.{name}"], np.float64)
                self._v[name] = np.array(optimizer_state[f"v.{name}"], np.float64)
        self._epoch = optimizer.epoch

    # --- forward ---

    def _encode(self, x):
        if self._model.n_state is None:
            return x
        return x @ self._params["encoder.weight"] + self._params["encoder.bias"]

    def _decode(self, z):
        if self._model.n_state is None:
            return z
        return z @ self._params["decoder.weight"] + self._params["decoder.bias"]

    def cell(self, u, x):
        """Return f(u, E x), for tests that check a state or iterate the cell."""
        layers = om.cell_layers(self._model, self._params)
        return om.cell(self._model, layers, np.float64(u), self._encode(np.float64(x)))

    def _solve(self, h):
        """Return the states, the residuals, the evaluations and which samples converged."""
        layers = om.cell_layers(self._model, self._params)
        find = om.steady_state if self._model.horizon is None else om.horizon_state
        z, n_evals = find(self._model, layers, h)
        with np.errstate(all="ignore"):
            fz = om.cell(self._model, layers, z, h)
            gap, size = np.abs(fz - z).max(axis=1), np.abs(fz).max(axis=1)
            residual = metrics.residual(z, fz)
        converged = np.isfinite(z).all(axis=1)
        if self._model.horizon is None:
            converged &= (gap <= self._solver.abstol) | (gap <= self._solver.reltol * size)
        return z, residual, n_evals, converged

    def equilibrium(self, x):
        z, residual, n_evals, converged = self._solve(self._encode(np.float64(x)))
        with np.errstate(all="ignore"):
            output = self._decode(z)
            return Equilibrium(
                state=z.astype(self._dtype),
                output=output.astype(self._dtype),
                residual=residual.astype(self._dtype),
                n_evals=np.full(len(x), n_evals, np.int64),
                converged=converged,
            )

    def trajectory(self, x, depth):
        u = np.zeros((len(x), self._model.state_width))
        iterates = []
        for _ in range(depth + 1):
            u = self.cell(u, x)
            iterates.append(u)
        return np.array(iterates).astype(self._dtype)

    def jvp(self, x, state, tangent):
        layers = om.cell_layers(self._model, self._params)
        h = self._encode(np.float64(x))
        jacobian = om.cell_jacobian(self._model, layers, np.float64(state), h)
        return np.einsum("nij,nj->ni", jacobian, np.float64(tangent)).astype(self._dtype)

    # --- backward ---

    def _pull_state_back(self, z, h, g):
        """Return the gradients of the cell's named parameters, and of h, from g = dL/dz."""
        model = self._model
        layers = om.cell_layers(model, self._params)
        if model.horizon is not None:
            layer_grads, d_h = om.horizon_vjp(model, layers, h, g)
        else:  # "unrolled" has the implicit gradient at an equilibrium of a contraction
            jfb = self._solver.adjoint == "jfb"
            layer_grads, d_h = om.steady_state_vjp(model, layers, z, h, g, jfb)
        return om.cell_parameter_grads(model, self._params, layer_grads), d_h

    def _loss_and_grad(self, x, target, weight, probe):
        """Return loss, gradient, the sum of the weights left in it, and the solve's results."""
        model, optimizer, params = self._model, self._optimizer, self._params
        z, *solved = self._solve(self._encode(x))
        valid = solved[-1]
        if self._solver.adjoint == "unrolled" or model.horizon is not None:
            valid = np.isfinite(z).all(axis=1)
        keep = valid & (weight > 0)
        if not keep.any():
            return np.nan, {n: np.zeros_like(p) for n, p in params.items()}, 0.0, solved
        x, z, target, weight = x[keep], z[keep], target[keep], weight[keep]
        h, output = self._encode(x), self._decode(z)

        loss = metrics.loss(optimizer.loss, output, target, weight)
        g = om.loss_gradient(optimizer.loss, output, target, weight)
        grads = {}
        if model.n_state is not None:
            grads |= {"decoder.weight": z.T @ g, "decoder.bias": g.sum(axis=0)}
            g = g @ params["decoder.weight"].T
        cell_grads, d_h = self._pull_state_back(z, h, g)
        grads |= cell_grads
        if model.n_state is not None:
            grads |= {"encoder.weight": x.T @ d_h, "encoder.bias": d_h.sum(axis=0)}

        for name in params:
            if name.endswith(".weight"):
                loss += optimizer.alpha / 2 * (params[name] ** 2).sum() / weight.sum()
                grads[name] = grads[name] + optimizer.alpha * params[name] / weight.sum()
        if model.stability == "jacobian":
            args = (model, params, x, z, weight, np.float64(probe))
            loss += optimizer.jacobian_penalty * om.jacobian_penalty(*args)
            for name, grad in om.jacobian_penalty_gradient(*args).items():
                grads[name] = grads[name] + optimizer.jacobian_penalty * grad
        if not optimizer.train_encoder:
            grads |= {n: np.zeros_like(p) for n, p in params.items() if n.startswith("encoder.")}
        return loss, grads, weight.sum(), solved

    def loss_and_grad(self, x, target, weight):
        probe = probes(self._optimizer.seed, 0, 1, self._model.state_width, np.float64)[0]
        x, weight = np.float64(x), np.float64(weight)
        loss, grads, _, _ = self._loss_and_grad(x, target, weight, probe)
        return float(loss), {name: grads[name].astype(self._dtype) for name in self._params}

    # --- training ---

    def load_data(self, x, target, weight):
        self._data = np.array(x, np.float64), np.array(target), np.array(weight, np.float64)

    def train_epoch(self, order, batch_size, on_batch=None):
        before = copy.deepcopy((self._params, self._count, self._m, self._v))
        try:
            report = self._train_epoch(order, batch_size, on_batch)
        except BaseException:
            self._params, self._count, self._m, self._v = before
            raise
        self._epoch += 1
        return report

    def _train_epoch(self, order, batch_size, on_batch):
        batches = list(iter_batches(np.asarray(order), batch_size))
        width = self._model.state_width
        epoch_probes = probes(self._optimizer.seed, self._epoch, len(batches), width, np.float64)
        reports = []
        for batch, probe in zip(batches, epoch_probes, strict=True):
            x, target, weight = (array[batch] for array in self._data)
            loss, grads, weight_sum, solved = self._loss_and_grad(x, target, weight, probe)
            residual, batch_evals, converged = solved
            counts = weight > 0
            reports.append(
                BatchReport(
                    loss=float(loss),
                    weight=float(weight_sum),
                    grad_norm=float(np.sqrt(sum((grad**2).sum() for grad in grads.values()))),
                    n_evals=float(batch_evals * counts.sum()),
                    n_samples=int(counts.sum()),
                    worst_residual=float(np.max(residual[counts], initial=0.0)),
                    n_failed=int((~converged[counts]).sum()),
                )
            )
            if weight_sum > 0:
                self._step(grads)
            if on_batch is not None:
                on_batch(reports[-1])
        return epoch_report(reports)

    def _step(self, grads):
        """Move every parameter once (Kingma and Ba 2015, algorithm 1)."""
        rate = self._optimizer.learning_rate
        self._count += 1
        for name, grad in grads.items():
            m = ADAM_BETA1 * self._m[name] + (1 - ADAM_BETA1) * grad
            v = ADAM_BETA2 * self._v[name] + (1 - ADAM_BETA2) * grad**2
            m_hat = m / (1 - ADAM_BETA1**self._count)
            v_hat = v / (1 - ADAM_BETA2**self._count)
            self._params[name] = self._params[name] - rate * m_hat / (np.sqrt(v_hat) + ADAM_EPS)
            self._m[name], self._v[name] = m, v

    # --- out ---

    def params(self):
        return {name: value.astype(self._dtype) for name, value in self._params.items()}

    def optimizer_state(self):
        state = {"count": np.array(self._count, np.int64)}
        state |= {f"m.{name}": m.astype(self._dtype) for name, m in self._m.items()}
        state |= {f"v.{name}": v.astype(self._dtype) for name, v in self._v.items()}
        return state

    def close(self):
        del self._params


class OracleEngine(AbstractEngine):
    name = "oracle"
    solvers = SOLVERS
    stabilities = STABILITIES
    unrolls = SOLVERS

    def __init__(self, device="auto"):
        pass

    def open(self, model, solver, optimizer, params, optimizer_state=None):
        return OracleSession(model, solver, optimizer, params, optimizer_state)
