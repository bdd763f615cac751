"""The Julia session against a stand-in for Julia: what is handed over, undone, and summed up."""

import types

import numpy as np
import pytest
from helpers import assert_params_equal, random_batch, random_params

from pydeq.engines import BatchReport
from pydeq.engines.julia import runtime, session
from pydeq.errors import EngineError, EngineUnavailableError
from pydeq.model import ModelSpec, OptimizerSpec, SolverSpec

MODEL = ModelSpec(n_features=3, n_outputs=2, n_state=6, hidden_layer_sizes=(7, 5))


REPORT = BatchReport(1.0, 1.0, 1.0, 1, 1, 0.0, 0)


class FakeModule:
    """As much of PyDEQ as the session needs; a batch adds 1 to every weight."""

    def __init__(self):
        self.batches, self.sizes, self.reports = [], [], None
        self.has_gpu = self.broken = False
        self.missing = ()

    def load(self, *names):
        if self.broken:
            raise EngineError("CUDA is broken")
        return self.missing

    def has_cuda(self):
        return self.has_gpu

    def open_session(self, **settings):
        self.settings = settings
        arrays = [np.array(array) for array in settings["arrays"]]
        moments = [np.zeros_like(array) for array in arrays]
        return types.SimpleNamespace(
            arrays=arrays,
            count=settings.get("opt_count", 0),
            m=settings.get("opt_m", moments),
            v=settings.get("opt_v", moments),
        )

    def load_data_b(self, s, x, target, weight):
        s.data = (x, target, weight)

    def snapshot(self, s):
        return [array.copy() for array in s.arrays], s.count

    def restore_b(self, s, snapshot):
        s.arrays, s.count = [array.copy() for array in snapshot[0]], snapshot[1]

    def train_batch_b(self, s, at, probe):
        assert at.min() >= 1
        s.arrays = [array + 1 for array in s.arrays]
        s.count += 1
        self.batches.append((at, probe))
        if self.reports is None:
            return REPORT
        report = self.reports.pop(0)
        if isinstance(report, type):
            raise report
        return report

    def equilibrium(self, s, x, each):
        assert each
        n = x.shape[1]
        self.sizes.append(n)
        return types.SimpleNamespace(
            state=np.repeat(x[:1], 6, axis=0),
            output=x[:2],
            residual=np.zeros(n),
            n_evals=np.full(n, 3, np.int32),
            converged=np.ones(n, bool),
        )

    def get_arrays(self, s):
        return s.arrays

    def optimizer_state(self, s):
        return s.count, s.m, s.v


@pytest.fixture
def module(monkeypatch):
    fake = FakeModule()

    def collect(*items):
        return list(items)

    running = runtime.Julia(
        pydeq=fake,
        array=np.array,
        vector=collect,
        strings=collect,
        integers=collect,
        load=fake.load,
        describe=collect,
    )
    monkeypatch.setattr(runtime.Process, "julia", running)
    monkeypatch.setattr(runtime.Process, "is_fork", False)
    return fake


def open_session(params=None, optimizer=None, state=None, **solver):
    optimizer = optimizer or OptimizerSpec()
    params = random_params(MODEL) if params is None else params
    return session.JuliaEngine("cpu").open(MODEL, SolverSpec(**solver), optimizer, params, state)


def test_an_old_project_lacks_the_packages_of_a_method(module):
    open_session(name="bs3")
    assert module.settings["solver"] == "bs3"
    module.missing = ("OrdinaryDiffEqLowOrderRK",)
    with pytest.raises(EngineUnavailableError, match=r"solver='bs3' needs .*LowOrderRK.*install"):
        open_session(name="bs3")
    open_session(name="tsit5")


def test_specs_and_weights_are_handed_over(module):
    params = random_params(MODEL, dtype="float32")
    open_session(params, OptimizerSpec(alpha=0.5, train_encoder=False), max_steps=7)
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
    assert session.JuliaEngine("auto").device == "cpu"
    with pytest.raises(EngineUnavailableError, match="install --cuda"):
        session.JuliaEngine("cuda")
    module.has_gpu = True
    assert session.JuliaEngine("auto").device == session.JuliaEngine("cuda").device == "cuda"
    assert session.JuliaEngine("cpu").device == "cpu"
    module.broken = True
    assert session.JuliaEngine("auto").device == "cpu"
    with pytest.raises(EngineUnavailableError, match="CUDA is broken"):
        session.JuliaEngine("cuda")
