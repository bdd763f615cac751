"""Checkpoints as files: what comes back, what is known to be damaged, and what a kill leaves."""

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time

import hypothesis.extra.numpy as hnp
import numpy as np
import oracle
import pytest
from checkpoint_cases import SMALL, PowerCut, X, Y, assert_same_fit, cut_off, names
from helpers import assert_params_equal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pydeq.estimators.base as base
from pydeq import Checkpoint, DEQClassifier, DEQRegressor
from pydeq.estimators import checkpoint_file
from pydeq.estimators.checkpoint_file import DamagedError, Saved
from pydeq.training import Average, EpochRecord, Moment, Patience, State

finite = st.floats(allow_nan=False, allow_infinity=False)
names_of_arrays = st.sampled_from(["cell.0.weight", "cell.0.bias", "decoder.weight"])
arrays = st.dictionaries(
    names_of_arrays,
    st.sampled_from(["f4", "f8"]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=2, max_side=4))
    ),
)
moments = st.builds(Moment, arrays, arrays)
records = st.builds(
    EpochRecord,
    st.floats(),
    st.floats(),
    st.floats(0, 1e9),
    st.floats(),
    st.integers(0, 2**40),
    st.floats(0, 1e9),
    st.none() | st.floats(),
)
states = st.builds(
    State,
    now=moments,
    kept=moments,
    best=moments,
    rng_state=st.integers(0, 2**63).map(lambda s: np.random.default_rng(s).bit_generator.state),
    kept_epoch=st.integers(0, 2**31),
    best_epoch=st.integers(0, 2**31),
    records=st.lists(records, max_size=3).map(tuple),
    patience=st.builds(Patience, st.floats(allow_nan=False), st.integers(0, 2**31)),
    average=st.builds(Average, st.integers(0, 2**31), arrays),
    stop_reason=st.sampled_from(["", "tol", "max_iter"]),
)


def text_of(saved):
    """Return what a checkpoint has, to the bit; NaN is NaN."""
    named = {
        name: (value.dtype.str, value.shape, value.tobytes())
        for name, value in checkpoint_file._named(saved.state)
    }
    rest = dataclasses.asdict(saved.state)
    for name in ("now", "kept", "best", "average"):
        del rest[name]
    return repr([*saved[:3], named, saved.state.average.count, rest])


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(state=states, shares=st.booleans())
def test_a_state_comes_back_to_the_bit(state, shares, tmp_path):
    if shares:
        state = dataclasses.replace(state, kept=Moment(state.now.params, state.now.optimizer_state))
    saved = Saved({"parameters": {"alpha": 0.1}}, state.rng_state, 3, state)
    checkpoint_file.write(tmp_path / "file", saved)
    assert text_of(checkpoint_file.read(tmp_path / "file")) == text_of(saved)


def test_arrays_that_moments_share_are_written_once(tmp_path):
    sizes = []
    params = {"w": np.zeros(10_000)}
    for kept in (params, {"w": np.zeros(10_000)}):
        now, other = Moment(params, {}), Moment(kept, {})
        rng = np.random.default_rng(0).bit_generator.state
        checkpoint_file.write(tmp_path / "file", Saved({}, rng, 0, State(now, other, now, rng)))
        sizes.append((tmp_path / "file").stat().st_size)
    assert 80_000 < sizes[0] < 90_000 < 160_000 < sizes[1]


@pytest.fixture(scope="module")
def a_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "file"
    params = {"w": np.arange(50.0)}
    rng = np.random.default_rng(0)
    state = State.first(Moment(params, {"count": np.array(3)}), rng)
    checkpoint_file.write(path, Saved({"a": 1}, state.rng_state, 0, state))
    return path.read_bytes()


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_torn_or_changed_file_is_known(data, a_file, tmp_path):
    at = data.draw(st.integers(0, len(a_file) - 1))
    content = data.draw(
        st.sampled_from(
            [a_file[:at], a_file[:at] + bytes(len(a_file) - at), a_file + b"x", a_file * 2]
        )
        | st.integers(1, 255).map(
            lambda x: a_file[:at] + bytes([a_file[at] ^ x]) + a_file[at + 1 :]
        )
    )
    if content == a_file:  # its last bytes may be zeros
        return
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DamagedError):
        checkpoint_file.read(tmp_path / "file")


def torn(path):
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path):
    path.write_bytes(b"")


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.usefixtures("on_oracle")
@pytest.mark.parametrize("damage", [torn, emptied, zeroed])
def test_a_damaged_newest_falls_back_to_the_one_before(damage, tmp_path, monkeypatch):
    y = Y[DEQClassifier]
    unbroken, how = DEQClassifier(**SMALL).fit(X, y), Checkpoint(tmp_path, every_epochs=1)
    with monkeypatch.context() as patch:
        cut_off(patch, 4)
        with pytest.raises(PowerCut):
            DEQClassifier(**SMALL).fit(X, y, checkpoint=how)
    assert names(tmp_path) == [3, 4]
    damage(sorted(tmp_path.iterdir())[-1])
    with pytest.warns(UserWarning, match="0004.safetensors is damaged.*the one before is taken"):
        again = DEQClassifier(**SMALL).fit(X, y, checkpoint=how)
    assert_same_fit(again, unbroken)
    assert names(tmp_path) == [5, 6]


@pytest.mark.usefixtures("on_oracle")
def test_where_none_is_whole_the_fit_starts_anew(tmp_path):
    y = Y[DEQClassifier]
    unbroken = DEQClassifier(**SMALL).fit(X, y, checkpoint=tmp_path)
    for path in tmp_path.iterdir():
        torn(path)
    with pytest.warns(UserWarning, match="damaged") as warned:
        again = DEQClassifier(**SMALL).fit(X, y, checkpoint=tmp_path)
    assert [str(w.message).rpartition("; ")[2] for w in warned] == [
        "the one before is taken.",
        "the fit starts anew.",
    ]
    assert_same_fit(again, unbroken)


@pytest.mark.usefixtures("on_oracle")
def test_a_full_disk_does_not_end_the_fit(tmp_path, monkeypatch):
    """The limit makes the kernel refuse a write in the middle of the file."""
    y = Y[DEQRegressor]
    unbroken = DEQRegressor(**SMALL).fit(X, y)
    how = Checkpoint(tmp_path, every_epochs=1)
    with monkeypatch.context() as patch:
        cut_off(patch, 3)
        with pytest.raises(PowerCut):
            DEQRegressor(**SMALL).fit(X, y, checkpoint=how)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.warns(UserWarning, match=r"could not be written .*epoch 3 is the n") as warned:
            full = DEQRegressor(**SMALL).fit(X, y, checkpoint=how)
        with pytest.raises(OSError, match="File too large"):
            DEQRegressor(**SMALL).fit(X, y, checkpoint=tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [str(w.message)[:26] for w in warned] == [
        f"The checkpoint of epoch {n} " for n in (4, 5, 6)
    ]
    assert_same_fit(full, unbroken)
    (tmp_path / "new").rmdir()  # nothing is left in it
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert_same_fit(DEQRegressor(**SMALL).fit(X, y, checkpoint=how), unbroken)


def test_a_folder_that_cannot_be_made_is_known_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "get_engine", lambda *_: oracle.OracleEngine())
    cut_off(monkeypatch, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        DEQRegressor(**SMALL).fit(X, Y[DEQRegressor], checkpoint=tmp_path / "file")


# --- kill -9 ---

SCRIPT = """
import sys
import numpy as np
from pydeq import Checkpoint, DEQClassifier
rng = np.random.default_rng(0)
X = rng.normal(size=(400, 5)).astype("f4")
y = (X[:, 0] * X[:, 1] > 0).astype(int)
model = DEQClassifier(n_state=8, hidden_layer_sizes=8, max_iter=20, batch_size=4, engine="jax",
                      tol=0.0, n_iter_no_change=20, random_state=0)
how = Checkpoint(sys.argv[1], every_epochs=1) if sys.argv[1] else None
print("ready", flush=True)
model.fit(X, y, checkpoint=how)
np.savez(sys.argv[2], **model.params_, loss=model.loss_curve_)
"""


def start(folder, out):
    command = [sys.executable, "-c", SCRIPT, str(folder), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
def test_killed_at_any_moment_it_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    def run(folder, out):
        monkeypatch.setattr(sys, "argv", ["", str(folder), str(out)])
        exec(SCRIPT, {})

    run("", tmp_path / "unbroken.npz")
    rng = np.random.default_rng(0)
    folder, n_kills, seen = tmp_path / "folder", 0, set()
    for _ in range(3):
        with start(folder, tmp_path / "again.npz") as process:
            assert process.stdout.readline() == "ready\n"
            first = max(names(folder), default=-1)
            while process.poll() is None and max(names(folder), default=-1) in (first, 0):
                time.sleep(0.002)  # an epoch at least, so that it comes to an end
            time.sleep(rng.uniform(0, 0.1))
            n_kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
        seen.add(max(names(folder)))
    assert n_kills >= 2
    assert len(seen) >= 2
    run(folder, tmp_path / "again.npz")
    found, expected = np.load(tmp_path / "again.npz"), np.load(tmp_path / "unbroken.npz")
    assert_params_equal(dict(found), dict(expected))
    assert not [path for path in folder.iterdir() if path.suffix != ".safetensors"]
