"""The Julia session against a stand-in for Julia: what is handed over, undone, and summed up."""

import ctypes
import dataclasses
import math
import types

import numpy as np
import pytest
from helpers import assert_params_equal, random_batch, random_params

from pydeq.engines import BatchReport
from pydeq.engines.julia import engine, runtime
from pydeq.errors import EngineError, EngineUnavailableError
from pydeq.layers import Dense
from pydeq.model import ModelSpec, OptimizerSpec, SolverSpec

MODEL = ModelSpec(n_features=3, n_outputs=2, n_state=6, hidden_layer_sizes=(7, 5))


REPORT = BatchReport(1.0, 1.0, 1.0, 1, 1, 0.0, 0)


class FakeModule:
    """As much of PyDEQ as the session needs; a batch adds 1 to every weight."""

    def __init__(self):
        self.batches, self.depths, self.sizes, self.reports = [], [], [], None
        self.has_gpu = self.broken = False
        self.missing = ()

    def load(self, *names):
        if self.broken:
            raise EngineError("CUDA is broken")
        return self.missing

    def has_cuda(self):
        return self.has_gpu

    def array_at(self, kind, address, *shape):
        size = math.prod(shape) * np.dtype(kind).itemsize
        memory = (ctypes.c_char * size).from_address(address)
        return np.frombuffer(memory, kind).reshape(shape, order="F")

    def open_session(self, names, values):
        self.settings = settings = dict(zip(names, values, strict=True))
        arrays = [np.array(array) for array in settings["arrays"]]
        zeros = [np.zeros_like(array) for array in arrays]
        m, v = ([np.array(a) for a in settings.get(f"opt_{name}", zeros)] for name in "mv")
        count = settings.get("opt_count", 0)
        return types.SimpleNamespace(arrays=arrays, count=count, m=m, v=v)

    def load_data_b(self, s, x, target, weight):
        s.data = (x, target, weight)

    def snapshot(self, s):
        return [array.copy() for array in s.arrays], s.count

    def restore_b(self, s, snapshot):
        s.arrays, s.count = [array.copy() for array in snapshot[0]], snapshot[1]

    def write_step_b(self, s, at, probe, depth, report):
        assert at.min() >= 1
        s.arrays = [array + 1 for array in s.arrays]
        s.count += 1
        self.batches.append((at.copy(), probe.copy()))
        self.depths.append(depth)
        made = REPORT if self.reports is None else self.reports.pop(0)
        if isinstance(made, type):
            raise made
        report[:] = made

    def write_equilibrium_b(self, s, x, state, output, residual, n_evals, converged):
        self.sizes.append(x.shape[1])
        state[:], output[:], residual[:] = x[:1], x[:2], 0
        n_evals[:], converged[:] = 3, True

    def write_params_b(self, s, arrays):
        copy_all(s.arrays, arrays)

    def write_moments_b(self, s, m, v):
        copy_all(s.m, m)
        copy_all(s.v, v)
        return s.count


def copy_all(arrays, to):
    for array, place in zip(arrays, to, strict=True):
        place[...] = array


@pytest.fixture
def module(monkeypatch):
    fake = FakeModule()

    def collect(*items):
        return list(items)

    running = runtime.Julia(
        pydeq=fake,
        vector=collect,
        strings=collect,
        integers=collect,
        load=fake.load,
        version=collect,
        describe=collect,
    )
    monkeypatch.setattr(runtime.Process, "julia", running)
    monkeypatch.setattr(runtime.Process, "is_fork", False)
    return fake


def open_session(params=None, optimizer=None, state=None, **solver):
    optimizer = optimizer or OptimizerSpec()
    params = random_params(MODEL) if params is None else params
    return engine.JuliaEngine("cpu").open(MODEL, SolverSpec(**solver), optimizer, params, state)


def test_an_old_project_lacks_the_packages_of_a_method(module):
    open_session(name="bs3")
    assert module.settings["solver"] == "bs3"
    module.missing = ("OrdinaryDiffEqLowOrderRK",)
    with pytest.raises(EngineUnavailableError, match=r"solver='bs3' needs .*LowOrderRK.*install"):
        open_session(name="bs3")
    open_session(name="tsit5")


def test_specs_and_weights_are_handed_over(module):
    params = random_params(MODEL, dtype="float32")
    turned = dict(reversed(params.items()))  # handed over in Julia's order all the same
    open_session(turned, OptimizerSpec(alpha=0.5, train_encoder=False), max_steps=7)
    settings = module.settings
    assert settings["names"] == list(params)
    assert settings["hidden_layer_sizes"] == [7, 5]
    assert settings["horizon"] is None
    assert settings["max_steps"] == 7
    assert not settings["train_encoder"]
    assert settings["device"] == "cpu"
    for array, value in zip(settings["arrays"], params.values(), strict=True):
        np.testing.assert_array_equal(array, value.T)
        assert array.dtype == np.float32


def test_the_optimizers_state_comes_and_goes(module):
    first = open_session()
    first.load_data(*random_batch(MODEL, OptimizerSpec()))
    first.train_epoch(np.arange(8), 4)
    state = first.optimizer_state()
    assert state["count"] == 2
    assert state["count"].dtype == np.int64
    assert_params_equal(open_session(state=state).optimizer_state(), state)


def test_batches_are_counted_from_one(module):
    opened = open_session()
    opened.load_data(*random_batch(MODEL, OptimizerSpec()))
    opened.train_epoch(np.array([7, 0, 3, 3, 5]), 2)
    assert [list(at) for at, _ in module.batches] == [[8, 1], [4, 4], [6]]
    assert {probe.shape for _, probe in module.batches} == {(6,)}
    assert len({tuple(probe) for _, probe in module.batches}) > 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, EngineError])
def test_an_epoch_that_fails_is_undone(module, error):
    opened = open_session()
    opened.load_data(*random_batch(MODEL, OptimizerSpec()))
    before, state = opened.params(), opened.optimizer_state()
    module.reports = [REPORT, error]
    with pytest.raises(error):
        opened.train_epoch(np.arange(8), 4)
    assert_params_equal(opened.params(), before)
    assert_params_equal(opened.optimizer_state(), state)
    probe = module.batches[0][1]
    module.reports = None
    opened.train_epoch(np.arange(8), 4)  # with the probes of the epoch that did not take place
    np.testing.assert_array_equal(module.batches[2][1], probe)
    for name, value in opened.params().items():
        np.testing.assert_allclose(value, before[name] + 2)


def test_an_interrupt_while_undoing_is_made_up_for(module, monkeypatch):
    opened = open_session()
    opened.load_data(*random_batch(MODEL, OptimizerSpec()))
    before = opened.params()
    module.reports = [REPORT, KeyboardInterrupt]
    with pytest.raises(KeyboardInterrupt):
        opened.train_epoch(np.arange(8), 4)
    with monkeypatch.context() as patch:

        def interrupted(*_):
            raise KeyboardInterrupt

        patch.setattr(module, "restore_b", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opened.params()
    assert_params_equal(opened.params(), before)


@pytest.mark.parametrize("index", [8, -1])
def test_samples_that_are_not_loaded_are_refused(module, index):
    opened = open_session()
    opened.load_data(*random_batch(MODEL, OptimizerSpec()))
    with pytest.raises(IndexError, match="8 samples are loaded"):
        opened.train_epoch(np.array([0, index]), 4)
    assert not module.batches


def test_many_samples_are_solved_in_chunks(module):
    x, _, _ = random_batch(MODEL, OptimizerSpec(), n=2100)
    found = open_session().equilibrium(x)
    assert module.sizes == [1024, 1024, 52]
    np.testing.assert_array_equal(found.output, x[:, :2])
    np.testing.assert_array_equal(found.state, np.repeat(x[:, :1], 6, axis=1))
    assert found.n_evals.dtype == np.int64


def test_a_closed_session_says_so(module):
    opened = open_session()
    opened.close()
    with pytest.raises(EngineError, match="closed"):
        opened.params()


def test_a_gpu_is_taken_where_there_is_one(module):
    assert engine.JuliaEngine("auto").device == "cpu"
    with pytest.raises(EngineUnavailableError, match="install --cuda"):
        engine.JuliaEngine("cuda")
    module.has_gpu = True
    assert engine.JuliaEngine("auto").device == engine.JuliaEngine("cuda").device == "cuda"
    assert engine.JuliaEngine("cpu").device == "cpu"
    module.broken = True
    assert engine.JuliaEngine("auto").device == "cpu"
    with pytest.raises(EngineUnavailableError, match="CUDA is broken"):
        engine.JuliaEngine("cuda")


def test_what_a_gpu_has_not_is_done_on_the_cpu(module):
    module.has_gpu = True
    given = SolverSpec("anderson"), OptimizerSpec()
    engine.JuliaEngine("auto").open(MODEL, *given, random_params(MODEL))
    assert module.settings["device"] == "cuda"
    layered = dataclasses.replace(MODEL, init=(Dense(6),))
    assert "does not have layers" in engine.missing_on_gpu(layered)
    with pytest.raises(ValueError, match="On a GPU the julia engine does not have layers"):
        engine.JuliaEngine("cuda").open(layered, *given, random_params(layered))
