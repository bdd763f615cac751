"""Where an epoch of pydeq's JAX engine goes, piece by piece, and how near that is to the machine.

    python tests/benchmarks/epoch_profile.py                    # both models, about three minutes
    python tests/benchmarks/epoch_profile.py blog --data DIR    # the 784-100-500-100-10 cell

The pieces of one batch are compiled apart and timed in turn, round after round, so that what else
the machine does hits all alike; medians. They are measured at weights that were trained for an
epoch, with the batches of a real epoch. Pieces compiled apart do not fuse with one another, so they
add up to a little more or less than the whole, which is timed too.

(Not called profile.py: the standard library's cProfile would import it.)
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax

from pydeq import DEQClassifier
from pydeq.datasets import load_mnist
from pydeq.engines.jax import JaxEngine, step
from pydeq.engines.jax.adjoint import find_equilibrium
from pydeq.engines.jax.cell import cell, cell_layers, decode, encode, loss_value
from pydeq.engines.jax.gmres import gmres
from pydeq.engines.jax.session import CHUNK
from pydeq.estimators.parameters import fit_specs
from pydeq.model import ModelSpec, epoch_order, init_params

HERE = Path(__file__).resolve().parent
REPEATS = 20
"""Evaluations and matrix products in one dispatch, which costs as much as a small one itself."""

MODELS = {
    "blog": DEQClassifier(
        n_state=100,
        hidden_layer_sizes=(500,),
        activation="tanh",
        stability="contractive",
        solver="anderson",
        abstol=1e-6,
        reltol=1e-3,
        learning_rate_init=1e-3,
        alpha=0.0,
        batch_size=128,
    ),
    "default": DEQClassifier(),
}


class Case(NamedTuple):
    """A session that has trained, one of its batches, and what the two are made of."""

    session: Any
    model: ModelSpec
    solver: str
    params: Any
    batch: Any
    controls: Any
    rates: Any
    batch_size: int


def prepare(estimator: DEQClassifier, x: np.ndarray, y: np.ndarray) -> tuple[Case, float]:
    """Return a session trained for an epoch on x, y, and the seconds its first batch took."""
    target = np.eye(10, dtype=x.dtype)[y]
    specs = fit_specs(estimator.get_params(), ("log_loss",), len(x), x.shape[1], 10)
    rng = np.random.default_rng(0)
    params = init_params(specs.model, rng, x.dtype)
    session = JaxEngine("cpu").open(specs.model, specs.solver, specs.optimizer, params)
    session.load_data(x, target, np.ones(len(x), x.dtype))
    size = specs.training.batch_size
    order = epoch_order(len(x), True, rng)
    # A batch and a bit compiles what a whole epoch needs: with one batch, rows would be padded.
    first = _seconds(lambda: session.train_epoch(order[: size + 1], size))
    session.train_epoch(order, size)
    probe = np.ones(specs.model.state_width, x.dtype)
    case = Case(
        session,
        specs.model,
        specs.solver.name,
        session._params,
        session._batch(order[:size], size, probe),
        session._controls,
        session._rates,
        size,
    )
    return case, first


def pieces(case: Case) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Return what is to be timed, each as a call that ends when its work has, and what is counted.

    Those whose name ends in "x" do their work `REPEATS` times.
    """
    model, params, batch, session = case.model, case.params, case.batch, case.session
    layers = jax.jit(partial(cell_layers, model))(params)
    h = jax.jit(partial(encode, model))(params, batch.x)
    active = batch.weight > 0
    solve = jax.jit(
        lambda layers, h: find_equilibrium(case.solver, model, layers, h, active, case.controls)
    )
    found = solve(layers, h)
    u = found.u

    def loss(params, u):
        return loss_value("log_loss", decode(model, params, u), batch.target, batch.weight)

    g = jax.jit(jax.grad(loss, argnums=1))(params, u)

    @jax.jit
    def solve_adjoint(layers, u, h, g):
        _, pullback = jax.vjp(lambda u: cell(model, layers, u, h), u)
        rtol = jnp.minimum(case.controls.reltol, 1e-3)
        return gmres(lambda v: v - pullback(v)[0], g, rtol, active)

    lam, n_products = solve_adjoint(layers, u, h, g)

    @jax.jit
    def pull_weights(layers, u, h, lam):
        return jax.vjp(lambda layers, h: cell(model, layers, u, h), layers, h)[1](lam)

    @jax.jit
    def pull_scaling(params, cotangent):
        return jax.vjp(partial(cell_layers, model), params)[1](cotangent)

    @jax.jit
    def pull_encoder(params, x, cotangent):
        return jax.vjp(lambda params: encode(model, params, x), params)[1](cotangent)

    optimizer = optax.adam(1e-3)
    opt_state = optimizer.init(params)

    @jax.jit
    def update(params, opt_state, grads):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    weights = [w for w, _ in layers]
    order = np.random.default_rng(1).permutation(len(session._data[2]))
    probe = np.ones(model.state_width, h.dtype)
    to_layers, to_h = pull_weights(layers, u, h, lam)
    tally = step.empty_tally(h.dtype)
    calls = {
        "whole step": lambda: step.train(
            session._program, params, session._opt_state, tally, batch, case.controls, case.rates
        ),
        "batch (gather, to device)": lambda: session._batch(
            order[: case.batch_size], case.batch_size, probe
        ),
        "encoder": partial(jax.jit(partial(encode, model)), params, batch.x),
        "encoder, gradient": partial(pull_encoder, params, batch.x, to_h),
        "scaling": partial(jax.jit(partial(cell_layers, model)), params),
        "scaling, with gradient": partial(pull_scaling, params, to_layers),
        "search": partial(solve, layers, h),
        "adjoint": partial(solve_adjoint, layers, u, h, g),
        "pullback to weights": partial(pull_weights, layers, u, h, lam),
        "decoder and loss, gradient": partial(
            jax.jit(jax.value_and_grad(loss, argnums=(0, 1))), params, u
        ),
        "optimiser": partial(update, params, opt_state, params),
        "evaluation x": partial(_evaluations(model), layers, u, h),
        "product with Jacobian x": partial(_products_with_jacobian(model), layers, u, h, g),
        "matrix product x": partial(_matrix_products(), weights, u),
        "activation x": partial(
            _activations(model), jnp.zeros((len(u), *model.hidden_layer_sizes[:1]), u.dtype)
        ),
        "empty dispatch": partial(jax.jit(lambda a: a + 1), jnp.zeros(())),
    }
    counts = {
        "evaluations, mean": float(found.n_evals.mean()),
        "evaluations, slowest": float(found.n_evals.max()),
        "products, mean": float(n_products.mean()),
        "products, slowest": float(n_products.max()),
        "flop": 2.0 * len(u) * sum(w.size for w in weights),
    }
    return {name: partial(_finish, call) for name, call in calls.items()}, counts


def _finish(call: Callable[[], Any]) -> None:
    jax.block_until_ready(call())


def _repeat(function: Callable[[Any], Any], start: Any) -> Any:
    return jax.lax.fori_loop(0, REPEATS, lambda _, value: function(value), start)


def _evaluations(model: ModelSpec):
    return jax.jit(lambda layers, u, h: _repeat(lambda u: cell(model, layers, u, h), u))


def _products_with_jacobian(model: ModelSpec):
    def run(layers, u, h, g):
        _, pullback = jax.vjp(lambda u: cell(model, layers, u, h), u)
        return _repeat(lambda g: pullback(g)[0], g)

    return jax.jit(run)


def _matrix_products():
    def run(weights, u):
        def once(u):
            for weight in weights:
                u = u @ weight
            return u

        return _repeat(once, u)

    return jax.jit(run)


def _activations(model: ModelSpec):
    act = {"tanh": jnp.tanh, "relu": jax.nn.relu, "logistic": jax.nn.sigmoid}[model.activation]
    return jax.jit(lambda v: _repeat(lambda v: act(v + 0.1), v))


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def medians(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each call, all timed in turn in every round."""
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(_seconds(call))
    return {name: statistics.median(times) for name, times in taken.items()}


def report(name: str, estimator: DEQClassifier, data: Any, samples: int, rounds: int) -> bool:
    """Print one model's tables; return whether prediction reaches its bar."""
    x, y, x_test, _ = data
    case, first = prepare(estimator, x[:samples], y[:samples])
    calls, counts = pieces(case)
    n_batches = 20
    order = np.random.default_rng(2).permutation(min(samples, len(x)))[
        : n_batches * case.batch_size
    ]
    n_batches = len(order) / case.batch_size
    calls["epoch"] = lambda: case.session.train_epoch(order, case.batch_size)
    times = medians(calls, rounds)
    for each in [key for key in times if key.endswith(" x")]:
        times[each[:-2]] = times.pop(each) / REPEATS
    _print_batch(name, case, times, counts, n_batches, first)
    return _print_prediction(case, x_test, rounds)


def _print_batch(name, case: Case, times, counts, n_batches: float, first: float) -> None:
    evaluation, product = times["evaluation"], times["product with Jacobian"]
    steps = counts["evaluations, slowest"]
    per_batch = times["epoch"] / n_batches
    dispatch = times["empty dispatch"]
    rows = [
        (
            "search: evaluations",
            steps * evaluation,
            f"{steps:.0f} (slowest sample; mean {counts['evaluations, mean']:.1f}) x "
            f"{evaluation * 1e6:.0f} us",
        ),
        ("search: solver", times["search"] - steps * evaluation - dispatch, "the rest of it"),
        (
            "adjoint: products",
            counts["products, slowest"] * product,
            f"{counts['products, slowest']:.0f} (mean {counts['products, mean']:.1f}) x "
            f"{product * 1e6:.0f} us",
        ),
        (
            "adjoint: solver",
            times["adjoint"] - counts["products, slowest"] * product - dispatch,
            "the rest of it",
        ),
        ("pullback to weights", times["pullback to weights"] - dispatch, ""),
        ("scaling of weights", times["scaling"] - dispatch, "forward"),
        (
            "scaling of weights, gradient",
            times["scaling, with gradient"] - times["scaling"],
            "on top of forward",
        ),
        ("encoder", times["encoder"] - dispatch, ""),
        ("encoder, gradient", times["encoder, gradient"] - dispatch, ""),
        ("decoder and loss, gradient", times["decoder and loss, gradient"] - dispatch, ""),
        ("optimiser (Adam)", times["optimiser"] - dispatch, ""),
    ]
    total = sum(seconds for _, seconds, _ in rows)
    step_time = times["whole step"]
    rows += [
        ("sum of these", total, ""),
        (
            "the whole step, compiled as one",
            step_time,
            f"an empty dispatch: {dispatch * 1e6:.0f} us",
        ),
        ("batch: gather, to the device", times["batch (gather, to device)"], "by itself"),
        ("a batch of an epoch", per_batch, f"{1 / per_batch:.0f} batches a second"),
        ("Python, dispatch, data: the difference", per_batch - step_time, ""),
    ]
    print(
        f"\n### {name}: batches of {case.batch_size}, `{case.solver}`, {case.model.cell_widths}\n"
    )
    print("| piece | us a batch | share | |\n| --- | ---: | ---: | --- |")
    for what, seconds, note in rows:
        print(f"| {what} | {seconds * 1e6:.0f} | {seconds / per_batch:.0%} | {note} |")
    flops = {key: counts["flop"] / times[key] / 1e9 for key in ("evaluation", "matrix product")}
    print(
        f"\nAn evaluation: {evaluation * 1e6:.0f} us, {flops['evaluation']:.1f} GFLOP/s; the plain "
        f"matrix products of its shape: {times['matrix product'] * 1e6:.0f} us, "
        f"{flops['matrix product']:.1f} GFLOP/s; its activation alone: "
        f"{times['activation'] * 1e6:.0f} us. First batch with compilation: {first:.1f} s."
    )


def _print_prediction(case: Case, x: np.ndarray, rounds: int) -> bool:
    session, model = case.session, case.model
    layers = jax.jit(partial(cell_layers, model))(case.params)
    found = session.equilibrium(x)
    u = jnp.zeros((CHUNK, model.state_width), jnp.float32)
    calls = {
        "prediction": lambda: session.equilibrium(x),
        "matrix product": partial(_finish, partial(_matrix_products(), [w for w, _ in layers], u)),
        "encoder": partial(
            _finish, partial(jax.jit(lambda x, w: x @ w), x, case.params["encoder.weight"])
        ),
    }
    times = medians(calls, max(rounds // 4, 5))
    evals = found.n_evals.mean()
    ideal = times["matrix product"] / REPEATS * len(x) / CHUNK * evals
    whole = ideal + times["encoder"]
    print(
        f"\nPrediction of {len(x)} samples: {times['prediction'] * 1e3:.1f} ms; at matrix-product "
        f"speed its {evals:.2f} evaluations a sample (slowest {found.n_evals.max()}) take "
        f"{ideal * 1e3:.1f} ms: {ideal / times['prediction']:.0%} (bar: 60 %); with the encoder's "
        f"product, {times['encoder'] * 1e3:.1f} ms: {whole / times['prediction']:.0%}."
    )
    return ideal / times["prediction"] >= 0.6


@click.command()
@click.argument("models", nargs=-1, type=click.Choice(list(MODELS)))
@click.option("--data", type=Path, default=None, help="Folder that holds MNIST/raw.")
@click.option("--samples", default=12_800, help="Training samples.")
@click.option("--rounds", default=40, help="Timings of each piece.")
def main(models: tuple[str, ...], data: Path | None, samples: int, rounds: int) -> None:
    """Profile MODELS (all by default)."""
    data = data or Path(os.environ.get("PYDEQ_DATA", HERE.parents[2] / "shared" / "data"))
    arrays = load_mnist(data)
    print(f"JAX {jax.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    reached = [report(name, MODELS[name], arrays, samples, rounds) for name in models or MODELS]
    sys.exit(not all(reached))


if __name__ == "__main__":
    main()
