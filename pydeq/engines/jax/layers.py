"""The parameters as they act: the cell's weights are scaled or composed.

This is computed once for all the samples that are solved with the same parameters; `pull_back`
takes gradients of what acts back to the parameters.
"""

import functools

import jax
import jax.numpy as jnp

from pydeq import layers
from pydeq.engines.jax.cell import Acting
from pydeq.engines.jax.norms import Bound, log_bound_and_slopes, log_norm_bounds
from pydeq.model import ModelSpec, Placed, parameter_shapes

__all__ = ["act", "acting_names", "pull_back"]


def act(model: ModelSpec, params: Acting, contraction: jax.Array) -> Acting:
    """Return the parameters as they act.

    The contractive cell's weights are scaled by one factor; ``cell.root`` is its square root, and
    ``cell.i.slope`` the derivative of its logarithm by the weight. The factor of a layer of layers
    is ``cell.i.factor``; the weights inside it are not scaled. The monotone cell's weight is
    composed.
    """
    if model.stability == "contractive":
        return params | _scaled(model, params, contraction)
    if model.stability == "monotone":
        return params | {"cell.0.weight": _composed(params["cell.0.weight"], params["cell.0.skew"])}
    return params


def acting_names(model: ModelSpec) -> list[str]:
    """Return the names of what acts, in order."""
    names = [name for name in parameter_shapes(model) if name != "cell.0.skew"]
    if model.stability == "contractive":
        weights = [n for n in names if n.startswith("cell.") and n.endswith(".weight")]
        names += ["cell.root", *(name.replace("weight", "slope") for name in weights)]
        names += [f"{placed.name}.factor" for placed in _with_factor(model)]
    return names


def pull_back(model: ModelSpec, params: Acting, acting: Acting, grads: Acting) -> Acting:
    """Return the gradient by the parameters from `grads`, that by what acts."""
    if model.stability == "contractive":
        root = acting["cell.root"]
        scaled = [f"{placed.name}.weight" for placed in _of_kind(model, *_LINEAR)]
        factors = [f"{placed.name}.factor" for placed in _with_factor(model)]
        by_scale = sum(jnp.sum(grads[name] * acting[name]) for name in scaled + factors)
        names = [name for name in params if name.startswith("cell.") and name.endswith(".weight")]
        weights = {
            name: (root * (root * grads[name]) if name in scaled else grads[name])
            + by_scale * acting[name.replace("weight", "slope")]
            for name in names
        }
        return {name: grads[name] for name in params} | weights
    if model.stability == "monotone":
        a, b, g = params["cell.0.weight"], params["cell.0.skew"], grads["cell.0.weight"]
        if a.ndim == 2:
            return grads | {"cell.0.weight": -(g + g.T) @ a, "cell.0.skew": g - g.T}
        to_weight, to_skew = jax.vjp(_composed, a, b)[1](g)
        return grads | {"cell.0.weight": to_weight, "cell.0.skew": to_skew}
    return grads


def _composed(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return W of the monotone cell; of kernels it is :func:`pydeq.model.monotone.composed`."""
    if a.ndim == 2:
        return b - b.T - a @ a.T
    k = a.shape[2]
    a = a.swapaxes(0, 1)
    pads = ((k - 1, k - 1), (k - 1, k - 1))
    square = jax.lax.conv_general_dilated(a, a, (1, 1), pads).swapaxes(0, 1)
    before, after = k - 1 - (k - 1) // 2, (k - 1) // 2
    skew = jnp.pad(b, ((0, 0), (0, 0), (before, after), (before, after)))
    return skew - skew.swapaxes(0, 1)[:, :, ::-1, ::-1] - square


_LINEAR = (layers.Dense, layers.Conv)


def _of_kind(model: ModelSpec, *kinds: type) -> list[Placed]:
    """Return the cell's own layers of some kinds: not those inside of another."""
    return [placed for placed in model.network.cell if isinstance(placed.layer, kinds)]


def _with_factor(model: ModelSpec) -> list[Placed]:
    return [placed for placed in model.network.cell if placed.has_factor]


def _scaled(model: ModelSpec, params: Acting, contraction: jax.Array) -> Acting:
    """Scale the cell so that the product of its layers' bounds is at most `contraction`.

    The sizes of weights are divided out before anything is multiplied, and the factor is applied
    by its root, twice: so no finite weight overflows, and no factor underflows.
    """
    bounds = []
    if dense := _of_kind(model, layers.Dense):
        bounds.append(_bound_of_dense(dense, params))
    others = [*_of_kind(model, layers.Conv), *_with_factor(model)]
    bounds += [log_bound_and_slopes(placed, params) for placed in others]
    log_product = functools.reduce(jnp.add, [log for log, _ in bounds])
    n_layers = len(dense) + len(others)
    log_scale = jnp.minimum((jnp.log(contraction) - log_product) / n_layers, 0)
    share = jnp.where(log_scale < 0, -1 / n_layers, 0)
    root = jnp.exp(log_scale / 2)
    scaled = {
        name: params[name] * root * root
        for name in (f"{placed.name}.weight" for placed in _of_kind(model, *_LINEAR))
    }
    factors = {f"{placed.name}.factor": root * root for placed in _with_factor(model)}
    slopes = {
        name.replace("weight", "slope"): share / size * slope
        for _, of_weights in bounds
        for name, (slope, size) in of_weights.items()
    }
    return scaled | factors | slopes | {"cell.root": root}


def _bound_of_dense(dense: list[Placed], params: Acting) -> Bound:
    """Return the bound of the product of matrices, which are iterated together."""
    names = [f"{placed.name}.weight" for placed in dense]
    weights = [params[name] for name in names]
    sizes = [jnp.max(jnp.abs(w)) for w in weights]
    sizes = [jnp.where(size > 0, size, 1) for size in sizes]
    logs, slopes = log_norm_bounds([w / size for w, size in zip(weights, sizes, strict=True)])
    log_product = jnp.sum(logs) + sum(jnp.log(size) for size in sizes)
    return log_product, dict(zip(names, zip(slopes, sizes, strict=True), strict=True))
