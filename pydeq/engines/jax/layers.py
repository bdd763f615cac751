"""The parameters as they act: the cell's weights are scaled or composed.

This is computed once for all the samples that are solved with the same parameters; `pull_back`
takes gradients of what acts back to the parameters.
"""

import jax
import jax.numpy as jnp

from pydeq.engines.jax.cell import Acting
from pydeq.model import ModelSpec, parameter_shapes

__all__ = ["act", "acting_names", "pull_back"]

SQUARINGS = 5
"""Of a Gram matrix, for the bound of its weight's spectral norm."""


def act(model: ModelSpec, params: Acting, contraction: jax.Array) -> Acting:
    """Return the parameters as they act.

    The contractive cell's weights are scaled by one factor; ``cell.root`` is its square root, and
    ``cell.i.slope`` the derivative of its logarithm by the weight. The monotone cell's weight is
    composed.
    """
    if model.stability == "contractive":
        return params | _scaled(model, params, contraction)
    if model.stability == "monotone":
        a, b = params["cell.0.weight"], params["cell.0.skew"]
        return params | {"cell.0.weight": b - b.T - a @ a.T}
    return params


def acting_names(model: ModelSpec) -> list[str]:
    """Return the names of what acts, in order."""
    names = [name for name in parameter_shapes(model) if not name.endswith(".skew")]
    if model.stability == "contractive":
        names += ["cell.root", *(f"cell.{i}.slope" for i in range(len(model.cell_widths) - 1))]
    return names


def pull_back(model: ModelSpec, params: Acting, acting: Acting, grads: Acting) -> Acting:
    """Return the gradient by the parameters from `grads`, that by what acts."""
    names = [name for name in acting if name.startswith("cell.") and name.endswith(".weight")]
    if model.stability == "contractive":
        by_scale = sum(jnp.sum(grads[name] * acting[name]) for name in names)
        weights = {
            name: acting["cell.root"] * (acting["cell.root"] * grads[name])
            + by_scale * acting[name.replace("weight", "slope")]
            for name in names
        }
        return grads | weights
    if model.stability == "monotone":
        a, g = params["cell.0.weight"], grads["cell.0.weight"]
        return grads | {"cell.0.weight": -(g + g.T) @ a, "cell.0.skew": g - g.T}
    return grads


def _scaled(model: ModelSpec, params: Acting, contraction: jax.Array) -> Acting:
    """Scale the cell's weights so that the product of their norms is at most `contraction`.

    The sizes of weights are divided out before anything is multiplied, and the factor is applied
    by its root, twice: so no finite weight overflows, and no factor underflows.
    """
    n_layers = len(model.cell_widths) - 1
    weights = [params[f"cell.{i}.weight"] for i in range(n_layers)]
    sizes = [jnp.max(jnp.abs(w)) for w in weights]
    sizes = [jnp.where(size > 0, size, 1) for size in sizes]
    units = [w / size for w, size in zip(weights, sizes, strict=True)]
    logs, slopes = _log_norm_bounds(units)
    log_product = jnp.sum(logs) + sum(jnp.log(size) for size in sizes)
    log_scale = jnp.minimum((jnp.log(contraction) - log_product) / n_layers, 0)
    share = jnp.where(log_scale < 0, -1 / n_layers, 0)
    root = jnp.exp(log_scale / 2)
    scaled = {f"cell.{i}.weight": w * root * root for i, w in enumerate(weights)}
    by_weight = [share / size * slope for size, slope in zip(sizes, slopes, strict=True)]
    return scaled | {f"cell.{i}.slope": s for i, s in enumerate(by_weight)} | {"cell.root": root}


def _log_norm_bounds(weights: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
    """Return the log of an upper bound of each ``||weight||_2``, and its gradient.

    Delattre et al. 2023, algorithm 1: ``||G^k||_F ** (1 / 2k)`` with k = 2 ** SQUARINGS bounds the
    spectral norm from above and converges to it superlinearly; it is deterministic and
    differentiable, so training and prediction scale the cell alike. Its gradient is
    d log sigma = tr(M dG) / (2 tr(M G)), M = G^(2k - 1), a product of the powers that are squared.
    """
    n = max(min(w.shape) for w in weights)
    grams = jnp.stack([_padded(_gram(w), n) for w in weights])  # rows of 0 change no norm
    tiny = jnp.finfo(grams.dtype).tiny

    def normalised(g: jax.Array) -> tuple[jax.Array, jax.Array]:
        norm = jnp.sqrt(jnp.sum(g**2, axis=(1, 2)) + tiny)
        return g / norm[:, None, None], jnp.log(norm)

    def square(_, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        power, product, log_norm = carry
        power, log_factor = normalised(power @ power)
        return power, product @ power, 2 * log_norm + log_factor

    power, log_norm = normalised(grams)
    _, product, log_norm = jax.lax.fori_loop(0, SQUARINGS, square, (power, power, log_norm))
    slopes = []
    for w, m in zip(weights, product, strict=True):
        k = min(w.shape)
        slope = w @ m[:k, :k] if w.shape[1] < w.shape[0] else m[:k, :k] @ w
        slopes.append(slope / (jnp.sum(slope * w) + tiny))
    return log_norm / 2 ** (SQUARINGS + 1), slopes


def _gram(weight: jax.Array) -> jax.Array:
    n_in, n_out = weight.shape
    return weight.T @ weight if n_out < n_in else weight @ weight.T


def _padded(gram: jax.Array, n: int) -> jax.Array:
    k = n - len(gram)
    return jnp.pad(gram, ((0, k), (0, k))) if k else gram
