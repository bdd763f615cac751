"""A cell that is a Lux layer, from a line of Julia: the Julia engine's alone."""

import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_near, random_batch, random_params, tight

import pydeq
from pydeq import CellFunction, DEQClassifier
from pydeq.engines import get_engine
from pydeq.engines.base import what_is_missing
from pydeq.engines.jax import JaxEngine
from pydeq.engines.julia import JuliaEngine, runtime
from pydeq.estimators import model_file
from pydeq.model import ModelSpec, OptimizerSpec, SolverSpec

CODE = """Chain(
    WrappedFunction(((u, h),) -> u .+ h .+ u .* h ./ 8),
    Dense(4 => 4, tanh; init_weight = (rng, n...) -> 0.3f0 .* randn(rng, Float32, n...)),
)"""
START = {"layer_2.bias": np.zeros(4), "layer_2.weight": 0.2 * np.eye(4)}
OPTIMIZER = OptimizerSpec(alpha=0.1, jacobian_penalty=0.7)


def model_of(cell, **changes):
    return ModelSpec(3, 2, 4, (), cell=cell, **changes)


def plain(params, u, h):
    return jnp.tanh((u + h + u * h / 8) @ params["weight"] + params["bias"])


def test_what_each_engine_lacks_is_said():
    model = model_of(CellFunction(CODE, START))
    assert "does not have a cell that is Julia code" in what_is_missing(
        JaxEngine, model, SolverSpec()
    )
    assert what_is_missing(JuliaEngine, model, SolverSpec()) == ""
    assert repr(model.cell).startswith("CellFunction(Chain(")
    with pytest.raises(ValueError, match="an identifier"):
        CellFunction(plain, START)


def test_the_jax_engine_is_told_of_by_name():
    model = DEQClassifier(n_state=4, cell="Dense", engine="jax")
    with pytest.raises(ValueError, match=r"needs engine='julia' or 'auto'; got .*cell=\[Dense"):
        model.fit(np.zeros((4, 2)), [0, 1, 0, 1])


def test_without_julia_the_string_is_the_reason(monkeypatch):
    environment = types.SimpleNamespace(ready=False, problem="there is none", advice="get one")
    monkeypatch.setattr(runtime, "find_julia", lambda: environment)
    monkeypatch.setattr(runtime, "Process", type("Process", (runtime.Process,), {"julia": None}))
    model = DEQClassifier(n_state=4, cell="Dense(4 => 4)", engine="auto")
    with pytest.raises(pydeq.EngineUnavailableError, match=r"'Dense\(4 => 4\)', Julia.*but there"):
        model.fit(np.zeros((4, 2)), [0, 1, 0, 1])


def test_code_in_a_file_is_not_run(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
    model = DEQClassifier(n_state=4, max_iter=1, engine="jax").fit(x, y)
    path = tmp_path / "model.safetensors"
    model.save(path)
    header, arrays = model_file.read(path)
    header["parameters"]["cell"] = "error()"
    model_file.write(path, json.loads(json.dumps(header)), arrays)
    with pytest.raises(pydeq.ModelFileError, match="it is not run"):
        pydeq.load(path)


@pytest.mark.julia
@pytest.mark.parametrize(
    ("stability", "solver"),
    [
        ("none", {"name": "newton", "adjoint": "jfb"}),
        ("jacobian", {"name": "anderson"}),
        ("jacobian", {"name": "fixed_point", "adjoint": "unrolled"}),
    ],
)
def test_it_computes_what_the_same_function_does_in_jax(stability, solver):
    own = pydeq.julia_cell(CODE, seed=3)
    assert own.shapes == {"layer_2.bias": (4,), "layer_2.weight": (4, 4)}
    assert own == pydeq.julia_cell(CODE, seed=4)
    assert own.digest != pydeq.julia_cell(CODE, seed=4).digest
    same = CellFunction(plain, {"weight": np.zeros((4, 4)), "bias": np.zeros(4)})
    model, other = (model_of(cell, stability=stability) for cell in (own, same))
    params = random_params(model, scale=0.5)
    renamed = {name.replace("layer_2.", ""): value for name, value in params.items()}
    batch = random_batch(model, OPTIMIZER)
    found = get_engine("julia", "cpu").open(model, tight(**solver), OPTIMIZER, params)
    expected = get_engine("jax", "cpu").open(other, tight(**solver), OPTIMIZER, renamed)
    assert_near(found.equilibrium(batch[0]).state, expected.equilibrium(batch[0]).state, 1e-8)
    (loss, gradient), (its_loss, its_gradient) = (
        s.loss_and_grad(*batch) for s in (found, expected)
    )
    assert loss == pytest.approx(its_loss, rel=1e-8)
    for name, value in gradient.items():
        assert_near(value, its_gradient[name.replace("layer_2.", "")], 1e-6, name)
    state, tangent = np.random.default_rng(1).normal(size=(2, len(batch[0]), 4))
    products = (s.jvp(batch[0], state, tangent) for s in (found, expected))
    assert_near(*products, 1e-12)


@pytest.mark.julia
def test_a_file_needs_the_code_again(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    model = DEQClassifier(n_state=4, cell=CODE, stability="none", max_iter=2, random_state=0)
    model.set_params(engine="julia").fit(x, y)
    path = tmp_path / "model.safetensors"
    with pytest.warns(UserWarning, match="not its cell"):
        model.save(path)
    with pytest.raises(ValueError, match="Pass it"):
        pydeq.load(path)
    again = pydeq.load(path, cell=CODE)
    assert (again.equilibrium(x, certify=True).certificates.spectral_abscissa < 0).all()
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))


@pytest.mark.julia
@pytest.mark.parametrize(
    ("code", "message"),
    [("3", "must make a Lux layer"), ("Dense(4 => ", "cell"), ("Dense(5 => 5)", "cell")],
)
def test_code_that_cannot_be_used(code, message):
    x, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
    model = DEQClassifier(n_state=4, cell=code, stability="none", max_iter=1, engine="julia")
    with pytest.raises((pydeq.EngineError, ValueError), match=message):
        model.fit(x, y)
