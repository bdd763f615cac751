"""The mathematics of a DEQ in plain numpy float64: dense, slow, and close to the formulas.

Everything follows the docstrings of ``pydeq.model.spec`` and ``pydeq.model.metrics``. The cell is a
list of layers ``(weight (n_in, n_out), bias (n_out,))``; the monotone cell's weight is W.
"""

import numpy as np
import scipy.special

from pydeq.model import ModelSpec

Layers = list[tuple[np.ndarray, np.ndarray]]

# Activation and its derivative.
ACTIVATION = {
    "identity": (lambda a: a, np.ones_like),
    "logistic": (
        scipy.special.expit,
        lambda a: scipy.special.expit(a) * (1 - scipy.special.expit(a)),
    ),
    "tanh": (np.tanh, lambda a: 1 - np.tanh(a) ** 2),
    "relu": (lambda a: np.maximum(a, 0), lambda a: (a > 0).astype(a.dtype)),
}

# The p of the Schatten norm behind "contractive": ||G^32||_F^(1/64) = (sum_k s_k^128)^(1/128), with
# s_k the singular values of W, since the eigenvalues of G are s_k^2.
SCHATTEN_P = 128

# Of the finite horizon's classical Runge-Kutta method; its error is about 1e-11 for these fields.
LONGEST_RK4_STEP = 0.005
MOST_RK4_STEPS = 20_000


# --- the cell ---


def spectral_bound(weight):
    """Return sigma of the weight: an upper bound of its spectral norm."""
    s = np.linalg.svd(weight, compute_uv=False)
    if s[0] == 0:
        return 0.0
    return s[0] * ((s / s[0]) ** SCHATTEN_P).sum() ** (1 / SCHATTEN_P)


def spectral_bound_gradient(weight):
    """Return d sigma / d weight = U diag((s / sigma)^(p - 1)) V^T."""
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    return u * (s / spectral_bound(weight)) ** (SCHATTEN_P - 1) @ vt


def contractive_factor(model: ModelSpec, weights):
    """Return the factor of every weight of the cell."""
    product = np.prod([spectral_bound(weight) for weight in weights])
    if model.stability != "contractive" or product <= model.contraction:
        return 1.0
    return (model.contraction / product) ** (1 / len(weights))


def contractive_factor_backward(model: ModelSpec, weights, scaled_grads):
    """Return the gradients for the weights from those for the scaled ones, factor * weight."""
    factor = contractive_factor(model, weights)
    if factor == 1.0:
        return scaled_grads
    # d factor / d sigma_i = -factor / (L sigma_i)
    d_factor = sum((g * w).sum() for g, w in zip(scaled_grads, weights, strict=True))
    return [
        factor * g
        - d_factor * factor / (len(weights) * spectral_bound(w)) * spectral_bound_gradient(w)
        for g, w in zip(scaled_grads, weights, strict=True)
    ]


def cell_weights(model: ModelSpec, params):
    """Return the cell's weights as the optimiser sees them, before any scaling."""
    return [params[f"cell.{i}.weight"] for i in range(len(model.cell_widths) - 1)]


def cell_layers(model: ModelSpec, params) -> Layers:
    """Return the cell's layers as they are applied: scaled where the model is contractive."""
    weights = cell_weights(model, params)
    if model.stability == "monotone":
        (a,), b = weights, params["cell.0.skew"]
        w = -a @ a.T + b - b.T
        return [(w, params["cell.0.bias"])]
    factor = contractive_factor(model, weights)
    return [(factor * w, params[f"cell.{i}.bias"]) for i, w in enumerate(weights)]


def cell_parameter_grads(model: ModelSpec, params, layer_grads):
    """Return the gradients of the cell's named parameters from those of its layers."""
    weights, d_weights = cell_weights(model, params), [w for w, _ in layer_grads]
    grads = {f"cell.{i}.bias": d_bias for i, (_, d_bias) in enumerate(layer_grads)}
    if model.stability == "monotone":
        (a,), (d_w,) = weights, d_weights
        return grads | {"cell.0.weight": -(d_w + d_w.T) @ a, "cell.0.skew": d_w - d_w.T}
    d_weights = contractive_factor_backward(model, weights, d_weights)
    return grads | {f"cell.{i}.weight": d_weight for i, d_weight in enumerate(d_weights)}


def cell(model: ModelSpec, layers: Layers, u, h):
    """Return f(u, h), ``(n, n_state)``."""
    activate, _ = ACTIVATION[model.activation]
    if model.stability == "monotone":
        ((weight, bias),) = layers
        return activate(u @ weight + h + bias)
    a = u + h
    for weight, bias in layers[:-1]:
        a = activate(a @ weight + bias)
    weight, bias = layers[-1]
    return a @ weight + bias


def cell_jacobian(model: ModelSpec, layers: Layers, u, h):
    """Return the dense Jacobians J[k, i, j] = df_i/du_j of the samples k, ``(n, d, d)``."""
    activate, slope = ACTIVATION[model.activation]
    a = u + h
    if model.stability == "monotone":
        ((weight, bias),) = layers
        return (weight * slope(u @ weight + h + bias)[:, None, :]).transpose(0, 2, 1)
    tangent = np.broadcast_to(np.eye(a.shape[1]), (len(a), a.shape[1], a.shape[1]))
    for weight, bias in layers[:-1]:
        before = a @ weight + bias
        tangent = tangent @ weight * slope(before)[:, None, :]
        a = activate(before)
    return (tangent @ layers[-1][0]).transpose(0, 2, 1)


def cell_vjp(model: ModelSpec, layers: Layers, u, h, cotangent):
    """Pull ``cotangent (n, d)`` back: return [(d weight, d bias), ...], d u and d h ``(n, d)``."""
    activate, slope = ACTIVATION[model.activation]
    if model.stability == "monotone":
        ((weight, bias),) = layers
        d_h = cotangent * slope(u @ weight + h + bias)
        return [(u.T @ d_h, d_h.sum(axis=0))], d_h @ weight.T, d_h
    inputs, befores = [u + h], []
    for weight, bias in layers[:-1]:
        befores.append(inputs[-1] @ weight + bias)
        inputs.append(activate(befores[-1]))
    grads = []
    for i in reversed(range(len(layers))):
        grads.insert(0, (inputs[i].T @ cotangent, cotangent.sum(axis=0)))
        cotangent = cotangent @ layers[i][0].T
        if i > 0:
            cotangent = cotangent * slope(befores[i - 1])
    return grads, cotangent, cotangent  # it sees u + h


# --- the state ---


def steady_state(model: ModelSpec, layers: Layers, h):
    """Return z* ``(n, n_state)`` and the number of evaluations.

    The damped iteration follows du/dt = f - u (Euler steps of 1/4) from u(0) = f(0, h) and chooses
    the equilibrium, where there is one; Newton's method with dense Jacobians makes it exact.
    """
    with np.errstate(all="ignore"):  # a cell without a stable equilibrium overflows
        u = cell(model, layers, np.zeros_like(h), h)
        n_evals = 1
        for _ in range(5000):
            step = cell(model, layers, u, h) - u
            n_evals += 1
            near = np.abs(step).max(axis=1) <= 1e-5 * (1 + np.abs(u).max(axis=1))
            if near.all():
                break
            u = np.where(near[:, None], u, u + step / 4)
        for _ in range(20):
            gap = cell(model, layers, u[near], h[near]) - u[near]
            n_evals += 1
            if (np.abs(gap) <= 1e-15).all():
                break
            jacobian = cell_jacobian(model, layers, u[near], h[near])
            u[near] += np.linalg.solve(np.eye(h.shape[1]) - jacobian, gap[:, :, None])[:, :, 0]
    return u, n_evals


def steady_state_vjp(model: ModelSpec, layers: Layers, z, h, g, jfb=False):
    """Pull g = dL/dz* back by the implicit function theorem: (I - J)^T lambda = g."""
    if not jfb:
        jacobian_t = cell_jacobian(model, layers, z, h).transpose(0, 2, 1)
        g = np.linalg.solve(np.eye(z.shape[1]) - jacobian_t, g[:, :, None])[:, :, 0]
    grads, _, d_h = cell_vjp(model, layers, z, h, g)
    return grads, d_h


def rk4_stages(model: ModelSpec, layers: Layers, u, h, dt):
    """Return the four points at which one step of the classical method evaluates, and its end."""
    points, slopes = [], []
    for c in (0, dt / 2, dt / 2, dt):
        points.append(u if c == 0 else u + c * slopes[-1])
        slopes.append(cell(model, layers, points[-1], h) - points[-1])
    return points, u + dt / 6 * (slopes[0] + 2 * slopes[1] + 2 * slopes[2] + slopes[3])


def horizon_steps(model: ModelSpec):
    """Return the number of steps to the horizon and their length.

    A model file with a horizon at random may ask for any; to such a one the steps are too long.
    """
    n_steps = int(min(np.ceil(model.horizon / LONGEST_RK4_STEP), MOST_RK4_STEPS))
    return n_steps, model.horizon / n_steps


def horizon_state(model: ModelSpec, layers: Layers, h):
    """Return u(T) ``(n, n_state)`` of du/dt = f(u, h) - u, u(0) = f(0, h), and the evaluations."""
    n_steps, dt = horizon_steps(model)
    with np.errstate(all="ignore"):  # an unstable cell may overflow before the horizon
        u = cell(model, layers, np.zeros_like(h), h)
        for _ in range(n_steps):
            _, u = rk4_stages(model, layers, u, h, dt)
    return u, 4 * n_steps + 1


def horizon_vjp(model: ModelSpec, layers: Layers, h, g):
    """Pull g = dL/du(T) back through every step and through u(0) = f(0, h)."""
    n_steps, dt = horizon_steps(model)
    start = cell(model, layers, np.zeros_like(h), h)
    path, u = [], start
    for _ in range(n_steps):
        points, u = rk4_stages(model, layers, u, h, dt)
        path.append(points)

    pulled = [cell_vjp(model, layers, start, h, np.zeros_like(g))]  # zeros of the right shapes

    def pull(point, cotangent):
        """Record the pull-back of one evaluation of the cell and return its d u."""
        pulled.append(cell_vjp(model, layers, point, h, cotangent))
        return pulled[-1][1]

    for points in reversed(path):
        g_next = g
        d_slope = [dt / 6 * g_next, dt / 3 * g_next, dt / 3 * g_next, dt / 6 * g_next]
        for i in (3, 2, 1, 0):  # slope_i = f(point_i) - point_i
            d_point = pull(points[i], d_slope[i]) - d_slope[i]
            g = g + d_point
            if i > 0:  # point_i = u + c_i slope_(i - 1)
                d_slope[i - 1] = d_slope[i - 1] + (dt if i == 3 else dt / 2) * d_point
    pull(np.zeros_like(h), g)
    layer_grads = [
        (sum(grads[i][0] for grads, *_ in pulled), sum(grads[i][1] for grads, *_ in pulled))
        for i in range(len(layers))
    ]
    return layer_grads, sum(d_h for *_, d_h in pulled)


# --- loss and penalties ---


def loss_gradient(name, output, target, weight):
    """Return dL/d output of ``pydeq.model.metrics.loss``, ``(n, n_outputs)``."""
    share = (weight / weight.sum())[:, None]
    if name == "squared_error":
        return 2 * (output - target) / output.shape[1] * share
    return (scipy.special.softmax(output, axis=1) - np.eye(output.shape[1])[target]) * share


def jacobian_penalty(model: ModelSpec, params, x, z, weight, probe):
    """Return the weighted mean of ||v^T df/dz||_2^2 / n_state at z, before its factor."""
    h = x if model.n_state is None else x @ params["encoder.weight"] + params["encoder.bias"]
    jacobian = cell_jacobian(model, cell_layers(model, params), z, h)
    return weight @ ((probe @ jacobian) ** 2).sum(axis=1) / weight.sum() / model.state_width


def jacobian_penalty_gradient(model: ModelSpec, params, x, z, weight, probe, step=1e-5):
    """Return the gradient of `jacobian_penalty`, z held constant, by central differences."""
    grads = {}
    for name, value in params.items():
        grads[name] = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            ends = []
            for sign in (1, -1):
                moved = value.copy()
                moved[index] += sign * step
                ends.append(jacobian_penalty(model, {**params, name: moved}, x, z, weight, probe))
            grads[name][index] = (ends[0] - ends[1]) / (2 * step)
    return grads
