"""No sample that is said to have converged is off: random weights and inputs of every size.

``pytest tests/test_faults_solves.py --fuzz 2400`` is the long run, of 64 samples a case.
"""

import numpy as np
import pytest
from helpers import random_params

from pydeq.engines import get_engine
from pydeq.model import ACTIVATIONS, SOLVERS, ModelSpec, OptimizerSpec, SolverSpec
from pydeq.model.cell import acting_cell, linearize

N = 64
STABILITIES = ("none", "contractive", "monotone")


def draw(seed):
    """Return the model, the search, weights and samples of a case."""
    rng = np.random.default_rng(seed)
    stability = str(rng.choice(STABILITIES))
    dtype = str(rng.choice(["float32", "float64"]))
    model = ModelSpec(
        n_features=3,
        n_outputs=2,
        n_state=5,
        hidden_layer_sizes=() if stability == "monotone" else (6,),
        activation=str(rng.choice(ACTIVATIONS)),
        stability=stability,
    )
    tolerance = 10.0 ** rng.uniform(-6, -1)
    name = str(rng.choice([s for s in SOLVERS if s != "peaceman_rachford"]))
    if stability == "monotone":
        name = str(rng.choice(SOLVERS))
    solver = SolverSpec(name, abstol=tolerance * rng.choice([1.0, 1e-3]), reltol=tolerance)
    decades = 30 if dtype == "float32" else 250

    def sizes():
        return 10.0 ** rng.uniform(-decades, decades) if rng.random() < 0.5 else 1.0

    params = {
        name: (sizes() * value).astype(dtype) if "." in name else value
        for name, value in random_params(model, seed, "float64", 3.0).items()
    }
    x = sizes() * rng.normal(size=(N, 3)) * 10.0 ** rng.uniform(-3, 3, (N, 1))
    return model, solver, params, x.astype(dtype)


def lies(model, solver, params, x, found):
    """Return which samples are said to have converged and, by float64, have not."""
    exact = {name: value.astype(np.float64) for name, value in params.items()}
    z = found.state.astype(np.float64)
    with np.errstate(all="ignore"):
        there = linearize(model, exact, acting_cell(model, exact), x.astype(np.float64), z)
        gap, size = (np.abs(a).max(axis=1) for a in (there.value - z, there.value))
        # What an engine in its dtype cannot see; the bound of it squares, and so may overflow.
        units = np.finfo(x.dtype).eps / np.finfo(np.float64).eps
        unseen = np.where(np.isfinite(there.error), there.error, 1e-13 * size)
        allowed = 1.001 * np.maximum(solver.abstol, solver.reltol * size) + 4 * units * unseen
        return found.converged & np.isfinite(there.value).all(axis=1) & ~(gap <= allowed)


@pytest.fixture
def n_solves(request):
    return request.config.getoption("--fuzz") or 16


def test_what_converged_is_an_equilibrium(n_solves):
    engine = get_engine("jax", "cpu")
    n_converged = 0
    for seed in range(n_solves):
        model, solver, params, x = draw(seed)
        session = engine.open(model, solver, OptimizerSpec(), params)
        found = session.equilibrium(x)
        session.close()
        assert not lies(model, solver, params, x, found).any(), (seed, model, solver)
        assert np.isfinite(found.state[found.converged]).all(), (seed, model, solver)
        n_converged += found.converged.sum()
    assert n_converged > 0.3 * N * n_solves
