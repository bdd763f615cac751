"""Save and load: what comes back, what a file may be, and what happens when it is not one."""

import json
import os
import pickle

import numpy as np
import oracle
import pandas as pd
import pytest
import safetensors
import safetensors.numpy
from helpers import assert_params_equal

import pydeq.estimators.base
from pydeq import DEQClassifier, DEQRegressor, __version__, load
from pydeq.errors import ModelFileError
from pydeq.estimators.labels import labels_from_json

SMALL = {"n_state": 4, "hidden_layer_sizes": (5, 3), "max_iter": 3, "random_state": 0}


@pytest.fixture(autouse=True)
def on_oracle(monkeypatch):
    monkeypatch.setattr(pydeq.estimators.base, "get_engine", lambda *_: oracle.OracleEngine())


def data(cls, dtype="float64"):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 3)).astype(dtype)
    return X, X[:, 0] if cls is DEQRegressor else (X[:, 0] > 0).astype(int)


@pytest.fixture
def saved(tmp_path):
    """A fitted regressor, and the file it was saved to."""
    model = DEQRegressor(**SMALL).fit(*data(DEQRegressor))
    path = tmp_path / "model.safetensors"
    model.save(path)
    return model, path


def rewrite(path, change):
    """Change a file's header, a dict, and its tensors in place."""
    with safetensors.safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()["pydeq"])
    tensors = safetensors.numpy.load_file(path)
    header = change(header, tensors) or header
    path.write_bytes(safetensors.numpy.save(tensors, {"pydeq": json.dumps(header)}))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cls", [DEQRegressor, DEQClassifier])
def test_what_is_loaded_is_what_was_saved(cls, dtype, tmp_path):
    X, y = data(cls, dtype)
    model = cls(**SMALL, early_stopping=True, validation_fraction=0.3).fit(X, y)
    model.save(str(tmp_path / "model"))
    loaded = load(str(tmp_path / "model"))
    assert type(loaded) is cls
    assert loaded.get_params() == model.get_params()
    assert_params_equal(loaded.params_, model.params_)
    assert {value.dtype.name for value in loaded.params_.values()} == {dtype}
    for name in ("model_spec_", "history_", "engine_", "n_features_in_", "n_iter_", "loss_curve_"):
        assert getattr(loaded, name) == getattr(model, name), name
    assert vars(loaded).keys() == vars(model).keys()
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X), strict=True)


@pytest.mark.parametrize("cls", [DEQRegressor, DEQClassifier])
def test_training_goes_on_from_a_file_as_if_it_had_never_stopped(cls, tmp_path):
    X, y = data(cls)
    model = cls(**SMALL, batch_size=6).fit(X, y)
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert_params_equal(loaded.optimizer_state_, model.optimizer_state_)
    for _ in range(2):
        assert_params_equal(loaded.partial_fit(X, y).params_, model.partial_fit(X, y).params_)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["no", "yes", "maybe"]),
        np.array(["no", "yes", "måske"], dtype=object),
        np.array([3, -1, 10]),
        np.array([3, 1, 10], dtype=np.uint8),
        np.array([0.0, 1.0, 2.0]),
    ],
)
def test_labels_keep_their_dtype(labels, tmp_path):
    X, _ = data(DEQClassifier)
    model = DEQClassifier(**SMALL).fit(X, np.resize(labels, 20))
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.classes_, model.classes_, strict=True)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X), strict=True)


def test_labels_of_two_truth_values(tmp_path):
    X, y = data(DEQClassifier)
    DEQClassifier(**SMALL).fit(X, y > 0).save(tmp_path / "model")
    assert load(tmp_path / "model").classes_.dtype == bool


@pytest.mark.parametrize("shape", [(20,), (20, 1), (20, 2)])
def test_predictions_keep_their_shape(shape, tmp_path):
    X, _ = data(DEQRegressor)
    DEQRegressor(**SMALL).fit(X, np.ones(shape)).save(tmp_path / "model")
    assert load(tmp_path / "model").predict(X).shape == shape


def test_feature_names_are_kept(tmp_path):
    X, y = data(DEQRegressor)
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    DEQRegressor(**SMALL).fit(frame, y).save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.feature_names_in_.tolist() == ["a", "b", "c"]
    loaded.predict(frame)
    with pytest.raises(ValueError, match="feature names should match"):
        loaded.predict(frame.rename(columns={"a": "z"}))


def test_parameters_of_numpy_are_saved_as_numbers(tmp_path):
    X, y = data(DEQRegressor)
    values = {
        "n_state": np.int64(4),
        "hidden_layer_sizes": np.array([5, 3]),
        "reltol": np.float32(0.5),
        "shuffle": np.False_,
        "n_iter_no_change": np.inf,
        "random_state": np.int64(3),
    }
    DEQRegressor(**{**SMALL, **values}).fit(X, y).save(tmp_path / "model")
    found = load(tmp_path / "model").get_params()
    expected = {**values, "hidden_layer_sizes": (5, 3)}
    assert {name: found[name] for name in values} == expected
    assert {type(found[name]) for name in values} == {int, tuple, float, bool}


def test_a_random_state_object_is_saved_as_none(tmp_path):
    X, y = data(DEQRegressor)
    model = DEQRegressor(**{**SMALL, "random_state": np.random.RandomState(0)}).fit(X, y)
    model.save(tmp_path / "model")
    assert load(tmp_path / "model").random_state is None


def test_a_parameter_that_no_fit_accepts_is_not_saved(saved, tmp_path):
    model, _ = saved
    model.set_params(solver=print)
    with pytest.raises(ValueError, match=r"^solver=<built-in function print> cannot be saved"):
        model.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_header_can_be_read_without_pydeq(saved):
    with safetensors.safe_open(saved[1], "numpy") as file:
        header = json.loads(file.metadata()["pydeq"])
        assert "params/encoder.weight" in file.keys()  # noqa: SIM118
        assert file.get_tensor("params/cell.0.weight").shape == (4, 5)
    assert header["format"] == 1
    assert header["class"] == "DEQRegressor"
    assert header["pydeq"] == __version__
    assert header["numpy"] == np.__version__
    assert header["parameters"]["hidden_layer_sizes"] == [5, 3]
    assert len(header["history"]["records"]) == 3


# --- files that are no models ---


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        load(tmp_path / "nothing")


def test_a_file_cut_anywhere_is_refused_by_name(saved):
    _, path = saved
    whole = path.read_bytes()
    for size in [0, 4, 8, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ModelFileError, match=r"model.safetensors cannot be loaded: .* needed"):
            load(path)


def foreign_files(path):
    model = {"w": np.ones(3)}
    return {
        "text": b"hello, world",
        "pickle": pickle.dumps(model),
        "other safetensors": safetensors.numpy.save(model),
        "other metadata": safetensors.numpy.save(model, {"format": "pt"}),
        "no JSON": safetensors.numpy.save(model, {"pydeq": "{"}),
        "no object": safetensors.numpy.save(model, {"pydeq": "[1]"}),
        "empty object": safetensors.numpy.save(model, {"pydeq": "{}"}),
        "only a version": safetensors.numpy.save(model, {"pydeq": '{"format": 1}'}),
    }


@pytest.mark.parametrize("kind", foreign_files(None))
def test_a_foreign_file_is_refused_by_name(kind, tmp_path):
    path = tmp_path / "foreign"
    path.write_bytes(foreign_files(path)[kind])
    with pytest.raises(ModelFileError, match=r"foreign cannot be loaded: .* is needed\."):
        load(path)


def test_a_newer_format_says_who_wrote_it(saved):
    _, path = saved
    rewrite(path, lambda header, tensors: header | {"format": 2, "pydeq": "9.8.7"})
    with pytest.raises(
        ModelFileError, match=rf"by pydeq 9.8.7 in format 2; pydeq {__version__} reads format 1"
    ):
        load(path)


def drop_bias(header, tensors):
    del tensors["params/cell.1.bias"]


def widen_bias(header, tensors):
    tensors["params/cell.1.bias"] = np.zeros(17)


def make_integer(header, tensors):
    for name in tensors:
        tensors[name] = tensors[name].astype(np.int64)


@pytest.mark.parametrize(
    "change",
    [
        drop_bias,
        widen_bias,
        make_integer,
        lambda header, tensors: header | {"class": "os.system"},
        lambda header, tensors: header | {"parameters": {"n_states": 3}},
        lambda header, tensors: header | {"parameters": [3]},
        lambda header, tensors: header | {"model": {"n_features": 3}},
        lambda header, tensors: header | {"history": {}},
        lambda header, tensors: header | {"rng": {"bit_generator": "MT19937"}},
        lambda header, tensors: header | {"class": "DEQClassifier"},
        lambda header, tensors: (
            header | {"class": "DEQClassifier", "classes": {"dtype": "|u1", "values": [0, 300]}}
        ),
        lambda header, tensors: {key: header[key] for key in header if key != "engine"},
        lambda header, tensors: header | {"target_scale": [0.0]},
        lambda header, tensors: header | {"target_mean": [float("nan")]},
        lambda header, tensors: header | {"target_mean": [0.0, 0.0]},
        lambda header, tensors: header | {"target_mean": None},
    ],
)
def test_a_file_with_the_wrong_content_is_refused_by_name(change, saved):
    _, path = saved
    rewrite(path, change)
    with pytest.raises(ModelFileError, match=r"model.safetensors cannot be loaded"):
        load(path)


def test_a_regressor_keeps_the_scale_of_its_target(tmp_path):
    X, y = data(DEQRegressor)
    y = np.column_stack([1e9 * y, 1e-6 * y + 3.0])
    model = DEQRegressor(**SMALL).fit(X, y)
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    expected = model.partial_fit(X, y).predict(X)
    np.testing.assert_array_equal(loaded.partial_fit(X, y).predict(X), expected)


def test_a_file_without_a_scale_learned_its_target_as_it_was(saved):
    model, path = saved
    keys = ("target_mean", "target_scale")
    rewrite(path, lambda header, tensors: {k: v for k, v in header.items() if k not in keys})
    loaded = load(path)
    X, _ = data(DEQRegressor)
    learned = (model.predict(X) - model.target_mean_) / model.target_scale_
    np.testing.assert_allclose(loaded.predict(X), learned)


def test_labels_that_no_classifier_has_are_refused():
    assert labels_from_json({"dtype": "|O", "values": ["a", "b"]}).tolist() == ["a", "b"]
    for dtype in ("V8", "M8[s]", "c16", "nonsense", "<U536870911", "S1", 3):
        with pytest.raises(ValueError, match="label"):
            labels_from_json({"dtype": dtype, "values": ["1", "2"]})


# --- writing ---


def test_a_failed_write_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    model, path = saved
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        model.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_new_file_replaces_the_old_one(saved):
    model, path = saved
    model.partial_fit(*data(DEQRegressor)).save(path)
    assert load(path).n_iter_ == 4
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    # Others may read it just as they may read any new file of this user.
    other = path.with_name("other")
    other.write_bytes(b"")
    assert path.stat().st_mode == other.stat().st_mode


def test_a_directory_that_is_not_there(saved, tmp_path):
    with pytest.raises(FileNotFoundError):
        saved[0].save(tmp_path / "nowhere" / "model")
