"""Damaged model files: whatever is in them, `load` refuses them by name or returns a model.

``pytest tests/test_faults_model_file.py --fuzz 10000`` is the long run.
"""

import contextlib
import copy
import json
import os
import warnings
from pathlib import Path

import numpy as np
import oracle
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_model_file import rewrite

import pydeq.estimators.base
from pydeq import DEQClassifier, DEQRegressor, load
from pydeq.errors import ModelFileError

DATA = Path(__file__).parent / "data"
SMALL = {"n_state": 2, "hidden_layer_sizes": (3,), "max_iter": 2, "random_state": 0}
X = np.random.default_rng(0).normal(size=(12, 2))


@pytest.fixture(autouse=True)
def on_oracle(monkeypatch):
    monkeypatch.setattr(pydeq.estimators.base, "get_engine", lambda *_: oracle.OracleEngine())


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The bytes of a regressor's and a classifier's file."""
    path = tmp_path_factory.mktemp("originals") / "model"
    contents = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pydeq.estimators.base, "get_engine", lambda *_: oracle.OracleEngine())
        for model, y in [
            (DEQRegressor(**SMALL), X[:, 0]),
            (DEQClassifier(**SMALL), np.array(["no", "yes"])[(X[:, 0] > 0).astype(int)]),
        ]:
            model.fit(X, y).save(path)
            contents.append(path.read_bytes())
    return contents


def load_and_predict(path):
    """Load a file that may be damaged; what loads has to predict."""
    try:
        model = load(path)
    except ModelFileError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert str(path) in message
        assert len(message) < 1500
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert model.predict(X[:3]).shape[0] == 3
    model.save(path)
    load(path)


# --- random damage ---


def damaged(content, rng):
    """Return a file's bytes with some of them changed, left out, doubled or cut off."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        if not content:
            break
        at = int(rng.integers(len(content)))
        match rng.integers(5):
            case 0:
                content[at] = rng.integers(256)
            case 1:
                content[at] ^= 1 << rng.integers(8)
            case 2:
                del content[at : at + int(rng.integers(1, 20))]
            case 3:
                content[at:at] = content[at : at + int(rng.integers(1, 20))]
            case 4 if rng.random() < 0.2:
                del content[max(at, 1) :]
    return bytes(content)


def test_bytes_at_random(originals, n_cases, tmp_path):
    path = tmp_path / "model"
    for seed in range(n_cases):
        rng = np.random.default_rng(seed)
        path.write_bytes(damaged(originals[seed % 2], rng))
        load_and_predict(path)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**63, 2**64, 10**400, -1, 0, 1])
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        ["tsit5", "newton", "monotone", "identity", "auto", "<U536870911", "DEQClassifier"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def places(value, path=()):
    """Yield the way to each value within nested objects and lists."""
    items = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def change(header, place, value, action):
    header = copy.deepcopy(header)
    *way, last = place
    parent = header
    for key in way:
        parent = parent[key]
    if action == "set":
        parent[last] = value
    elif action == "delete":
        del parent[last]
    elif isinstance(parent, dict):
        parent["another"] = parent[last]
    else:
        parent.append(parent[last])
    return header


@pytest.mark.parametrize("which", [0, 1])
def test_headers_at_random(which, originals, n_cases, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(originals[which])
    with safetensors.safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()["pydeq"])
    tensors = safetensors.numpy.load(originals[which])

    @settings(
        max_examples=n_cases // 2,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(list(places(header))), VALUES, st.sampled_from(["set", "delete", "add"]))
    def mutate(place, value, action):
        text = json.dumps(change(header, place, value, action))
        path.write_bytes(safetensors.numpy.save(tensors, {"pydeq": text}))
        load_and_predict(path)

    mutate()


# --- damage of a kind ---


def set_in(*place, value):
    return lambda header, tensors: change(header, place, value, "set")


def in_array(name, edit):
    def apply(header, tensors):
        tensors[name] = edit(tensors[name].copy())

    return apply


def nan_first(array):
    array.flat[0] = np.nan
    return array


WRONG = {
    "reltol": set_in("parameters", "reltol", value=-1),
    "alpha": set_in("parameters", "alpha", value=10**400),
    "solver": set_in("parameters", "solver", value="euler"),
    "unfit solver": set_in("parameters", "solver", value="peaceman_rachford"),
    "device": set_in("parameters", "device", value="tpu"),
    "random_state": set_in("parameters", "random_state", value=-1),
    "warm_start": set_in("parameters", "warm_start", value="no"),
    "activation": set_in("model", "activation", value="sine"),
    "contraction": set_in("model", "contraction", value=1.5),
    "horizon": set_in("model", "horizon", value=-1),
    "n_features": set_in("model", "n_features", value=10**4000),
    "true": set_in("model", "n_outputs", value=True),
    "layers": set_in("model", "hidden_layer_sizes", value=[1] * 10_000),
    "records": set_in("history", "records", value=[1]),
    "loss": set_in("history", "records", 0, "loss", value="0"),
    "n_failed": set_in("history", "records", 0, "n_failed", value=0.5),
    "stop_reason": set_in("history", "stop_reason", value="bored"),
    "seed": set_in("seed", value=-1),
    "rng": set_in("rng", "state", "inc", value=2),
    "rng state": set_in("rng", "state", "state", value=2**128),
    "engine": set_in("engine", value=3),
    "format": set_in("format", value=True),
    "single_target": set_in("single_target", value="yes"),
    "feature_names": set_in("feature_names", value=["a"]),
    "no names": set_in("feature_names", value=[1, 2]),
    "weight": in_array("params/cell.0.weight", nan_first),
    "moment": in_array("optimizer/v.cell.0.weight", lambda v: -1 - v),
    "moment's shape": in_array("optimizer/m.cell.0.weight", np.transpose),
    "moment's dtype": in_array("optimizer/m.cell.0.weight", np.float32),
    "count": in_array("optimizer/count", lambda count: np.array(-1)),
    "counts": in_array("optimizer/count", lambda count: np.array([1, 2])),
    "another array": lambda header, tensors: tensors.update(other=np.zeros(2)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_field_is_refused(kind, originals, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(originals[0])
    rewrite(path, WRONG[kind])
    with pytest.raises(ModelFileError, match="model cannot be loaded"):
        load(path)


@pytest.mark.parametrize(
    "classes",
    [
        {"dtype": "<U536870911", "values": ["no", "yes"]},
        {"dtype": "<U2", "values": ["no", "yes"]},
        {"dtype": "<U3", "values": ["no", "no"]},
        {"dtype": "<U3", "values": ["yes", "no"]},
        {"dtype": "<U3", "values": ["maybe", "no", "yes"]},
        {"dtype": "<i8", "values": ["no", "yes"]},
        {"dtype": "<i8", "values": [0.0, 1.0]},
        {"dtype": "|u1", "values": [0, 300]},
        {"dtype": "<f8", "values": [0.0, float("nan")]},
        {"dtype": "|O", "values": ["no", {}]},
        {"dtype": "M8[s]", "values": [0, 1]},
        {"dtype": 3, "values": [0, 1]},
        [0, 1],
    ],
)
def test_wrong_labels_are_refused(classes, originals, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(originals[1])
    rewrite(path, set_in("classes", value=classes))
    with pytest.raises(ModelFileError, match="model cannot be loaded"):
        load(path)


@pytest.mark.parametrize(
    "header",
    ["[" * 100_000, '{"format": 1, "format": 1}', '{"format": ' + "1" * 5000 + "}", "\ud800", "1"],
)
def test_json_that_is_no_header_is_refused(header, originals, tmp_path):
    tensors = safetensors.numpy.load(originals[0])
    with contextlib.suppress(UnicodeEncodeError):
        header = header.encode("ascii").decode()
    path = tmp_path / "model"
    path.write_bytes(
        safetensors.numpy.save(tensors, {"pydeq": header.replace("\ud800", "\\ud800")})
    )
    with pytest.raises(ModelFileError, match="no description of a pydeq model"):
        load(path)


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, name in [
        (tmp_path, "a directory"),
        (tmp_path / "pipe", "a pipe"),
        ("/dev/null", "a device"),
    ]:
        with pytest.raises(ModelFileError, match=f"it is {name}"):
            load(path)


# --- files of 0.1 ---


def test_a_regressor_of_0_1_predicts_what_it_did():
    # Made by commit 0c8817e: DEQRegressor(n_state=4, hidden_layer_sizes=(6,), max_iter=5,
    # random_state=0) on normal X (40, 3) and y = X[:, 0] - 2 X[:, 1], in JAX.
    model = load(DATA / "regressor-0.1.safetensors")
    found = model.predict([[0.5, -1.0, 2.0], [-0.25, 0.75, 0.0]])
    np.testing.assert_allclose(found, [-0.28265401, -0.29361684], rtol=5e-3)
    assert not hasattr(model, "monotonicity")


def test_a_classifier_of_0_1_predicts_what_it_did():
    # As above, in float32 with early_stopping, of three labels.
    model = load(DATA / "classifier-0.1.safetensors")
    assert model.classes_.tolist() == ["maybe", "no", "yes"]
    samples = np.array([[0.5, -1.0, 2.0], [-0.25, 0.75, 0.0]], np.float32)
    assert model.predict(samples).tolist() == ["yes", "no"]
    expected = [[0.31649232, 0.33209667, 0.351411], [0.3213615, 0.35104647, 0.32759205]]
    np.testing.assert_allclose(model.predict_proba(samples), expected, rtol=1e-3)
    assert model.early_stopping
    model.set_params(early_stopping=False).partial_fit(samples, ["no", "yes"])
    assert model.n_iter_ == 6


def old(tmp_path, edit):
    path = tmp_path / "old"
    path.write_bytes((DATA / "regressor-0.1.safetensors").read_bytes())
    rewrite(path, edit)
    return path


def test_a_cell_that_is_gone_is_refused_in_words(tmp_path):
    def monotone(header, tensors):
        header["model"] |= {"stability": "monotone", "monotonicity": 0.5}

    with pytest.raises(ModelFileError, match=r"monotonicity=0\.5, and pydeq has only 1 now"):
        load(old(tmp_path, monotone))


def test_a_horizon_keeps_its_tolerances(tmp_path):
    def horizon(header, tensors):
        header["model"]["horizon"] = header["parameters"]["horizon"] = 2.0
        header["parameters"] |= {"ode_abstol": 1e-9, "ode_reltol": 1e-7}

    model = load(old(tmp_path, horizon))
    assert (model.abstol, model.reltol) == (1e-9, 1e-7)


def test_a_model_trained_by_another_optimiser_loads(tmp_path):
    def sgd(header, tensors):
        header["parameters"] |= {"optimizer": "sgd", "loss": "sum_of_squares"}
        for name in list(tensors):
            if name.startswith("optimizer/"):
                del tensors[name]

    assert load(old(tmp_path, sgd)).partial_fit(np.ones((2, 3)), [0, 1]).n_iter_ == 6
