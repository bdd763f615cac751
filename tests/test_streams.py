"""Estimators on data that are read in pieces: the same bits as from the same data in memory."""

import functools

import dask.array
import numpy as np
import oracle
import pytest
from helpers import assert_params_equal, assert_params_near
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_rows import SOURCES, in_h5py, in_zarr, on_disk

import pydeq.estimators.base as base
from pydeq import DEQClassifier, DEQRegressor
from pydeq.estimators import rows
from pydeq.model import batching

RNG = np.random.default_rng(0)
N = 90
X = RNG.normal(size=(N, 3))
VALUES = X[:, 0] - X[:, 1] ** 2
Y = {
    DEQRegressor: VALUES,
    DEQClassifier: np.digitize(VALUES, [-1.0, 0.0]),
}
BOTH = [DEQRegressor, DEQClassifier]
SMALL = {"n_state": 3, "hidden_layer_sizes": 4, "max_iter": 3, "batch_size": 8, "random_state": 0}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(rows, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(batching, "BLOCK_ROWS", 16)


@pytest.fixture(params=["oracle", "jax"])
def engine(request, monkeypatch):
    if request.param == "oracle":
        monkeypatch.setattr(base, "get_engine", lambda *_: oracle.OracleEngine())
    return request.param


def make(cls, **changes):
    return cls(**{**SMALL, **changes})


def answers(model, X):
    found = model.equilibrium(X, certify=True)
    every = [vars(found), vars(found.certificates), {"predict": model.predict(X)}]
    if isinstance(model, DEQClassifier):
        names = ("predict_proba", "predict_log_proba", "decision_function")
        every.append({name: getattr(model, name)(X) for name in names})
    return {k: v for part in every for k, v in part.items() if isinstance(v, np.ndarray)}


def fitted(cls, X):
    """Return what a fit learns and answers, and what it has learned after one more epoch."""
    model = make(cls).fit(X, Y[cls])
    learned = {**model.params_, "loss": np.array(model.loss_curve_), **answers(model, X)}
    later = model.partial_fit(X, Y[cls]).params_
    return learned | {f"later {name}": value for name, value in later.items()}


@functools.cache
def fitted_in_memory(engine, cls, dtype):
    return fitted(cls, X.astype(dtype))


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_fit_and_answers_are_those_from_memory(source, cls, dtype, engine, tmp_path):
    found = fitted(cls, source(X.astype(dtype), tmp_path))
    assert found["cell.0.weight"].dtype == dtype
    assert_params_equal(found, fitted_in_memory(engine, cls, dtype))


@pytest.mark.parametrize("y_source", [*SOURCES, "list", "column"])
@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.filterwarnings("ignore:A column-vector y")
def test_y_may_be_anything_too(cls, y_source, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "get_engine", lambda *_: oracle.OracleEngine())
    y = Y[cls]
    if y_source == "dask":
        there = dask.array.from_array(y, chunks=11)
    elif y_source in SOURCES:
        kind = {"memmap": on_disk, "h5py": in_h5py, "zarr": in_zarr}[y_source]
        (tmp_path / "y").mkdir()
        there = kind(y, tmp_path / "y")
    else:
        there = y.tolist() if y_source == "list" else y[:, np.newaxis]
    expected = make(cls).fit(X, y[:, np.newaxis] if y_source == "column" else y)
    found = make(cls).fit(on_disk(X, tmp_path), there)
    assert_params_equal(found.params_, expected.params_)
    assert found.predict(X).shape == expected.predict(X).shape


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_weights_and_held_out_samples_change_nothing(data, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "get_engine", lambda *_: oracle.OracleEngine())
    cls = data.draw(st.sampled_from(BOTH))
    kind = st.sampled_from([0.0, 0.0, 1.0, 2.5])
    weight = np.array(data.draw(st.lists(kind, min_size=N, max_size=N) | st.just([1.0] * N)))
    weight[:12] = 1.0  # some of every class
    model = make(cls, max_iter=1, early_stopping=data.draw(st.booleans()), validation_fraction=0.25)
    model.set_params(shuffle=data.draw(st.booleans()))
    expected = model.fit(X, Y[cls], weight).params_
    found = model.fit(on_disk(X, tmp_path), Y[cls], weight).params_
    assert_params_equal(found, expected)
    counts = weight > 0
    # A sum over arrays that lie otherwise in memory may differ in its last place.
    without = model.fit(X[counts], Y[cls][counts], weight[counts]).params_
    assert_params_near(without, expected, 1e-12)


def test_labels_of_samples_without_weight_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "get_engine", lambda *_: oracle.OracleEngine())
    y = np.array(["a", "b"], dtype=object)[np.arange(N) % 2]
    weight = np.ones(N)
    y[[3, 40, 41]], weight[[3, 40, 41]] = "never", 0
    for there in (X, on_disk(X, tmp_path)):
        model = make(DEQClassifier).fit(there, y, weight)
        assert model.classes_.tolist() == ["a", "b"]


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize(
    ("at", "value", "said"),
    [(70, np.nan, "Input X contains NaN"), (3, np.inf, "Input X contains infinity")],
)
def test_values_are_checked_wherever_they_are(source, at, value, said, tmp_path, engine):
    bad = X.copy()
    bad[at, 1] = value
    there = source(bad, tmp_path)
    model = make(DEQRegressor)
    with pytest.raises(ValueError, match=said):
        model.fit(there, Y[DEQRegressor])
    assert not hasattr(model, "params_")
    model.fit(X, Y[DEQRegressor])
    with pytest.raises(ValueError, match=said):
        model.predict(there)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda X, y: (X[:, 0], y), "Expected 2D array, got 1D array"),
        (lambda X, y: (X, y[:-1]), "inconsistent numbers of samples"),
        (lambda X, y: (X, None), "requires y to be passed"),
        (lambda X, y: (X, np.where(y > 0, y, np.nan)), "Input y contains NaN"),
    ],
)
def test_forms_are_checked_as_in_memory(change, said, tmp_path, engine):
    for there in (X, on_disk(X, tmp_path)):
        with pytest.raises(ValueError, match=said):
            make(DEQRegressor).fit(*change(there, VALUES))


def test_another_number_of_features_is_refused(tmp_path, engine):
    model = make(DEQRegressor).fit(X, VALUES)
    with pytest.raises(ValueError, match="X has 2 features, but DEQRegressor is expecting 3"):
        model.predict(on_disk(X[:, :2].copy(), tmp_path))


def test_a_value_beyond_the_models_dtype_is_refused(tmp_path, engine):
    model = make(DEQRegressor).fit(X.astype("f4"), VALUES)
    large = X.copy()
    large[80] = 1e39
    with pytest.raises(ValueError, match="too large for dtype"):
        model.predict(on_disk(large, tmp_path))


FIELDS = ("state", "output", "residual", "n_evals", "converged")


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("kind", ["memory", "memmap", "h5py", "zarr"])
def test_equilibria_are_written_to_the_arrays_that_are_given(kind, tmp_path):
    model = make(DEQRegressor).fit(X, VALUES)
    expected = vars(model.equilibrium(X))
    out = {name: expected[name] * 0 for name in FIELDS}
    if kind == "memmap":
        out = {
            name: np.lib.format.open_memmap(
                tmp_path / f"{name}.npy", "w+", value.dtype, value.shape
            )
            for name, value in out.items()
        }
    elif kind != "memory":
        out = {n: {"h5py": in_h5py, "zarr": in_zarr}[kind](v, tmp_path) for n, v in out.items()}
    (tmp_path / "X").mkdir()
    found = model.equilibrium(on_disk(X, tmp_path / "X"), out=out)
    for name in FIELDS:
        assert getattr(found, name) is out[name]
        np.testing.assert_array_equal(out[name][:], expected[name])
    some = model.equilibrium(X, certify=True, out={"state": out["state"]})
    assert some.state is out["state"]
    np.testing.assert_array_equal(some.output, expected["output"])
    assert some.certificates.distance_bound.shape == (N,)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ({"states": np.zeros((N, 3))}, "out takes state, output, .*; got 'states'"),
        ({"state": np.zeros((N, 4))}, r"out\['state'\] must be .* shape \(90, 3\) .* got shape"),
        ({"state": np.zeros((N, 3), "f4")}, "that holds float64; got .* dtype float32"),
        ({"n_evals": np.zeros(N, "i4")}, "that holds int64"),
        ({"residual": [0.0] * N}, "got shape None and dtype None"),
    ],
)
def test_an_array_that_does_not_fit_is_refused_before_the_work(out, said, engine):
    model = make(DEQRegressor).fit(X, VALUES)
    with pytest.raises(ValueError, match=said):
        model.equilibrium(X, out=out)
