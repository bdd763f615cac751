"""A fit with checkpoints: cut off anywhere and gone on with, it ends with the unbroken's bits."""

import shutil

import numpy as np
import oracle
import pytest
from checkpoint_cases import BOTH, SMALL, PowerCut, X, Y, assert_same_fit, cut_off, names
from helpers import assert_params_equal

import pydeq
import pydeq.estimators.base as base
from pydeq import Checkpoint, DEQClassifier, DEQRegressor
from pydeq.estimators import checkpoint_file

CASES = {
    "average": {},
    "no average": {"average": False},
    "probes": {"stability": "jacobian"},
    "early stopping": {"early_stopping": True, "validation_fraction": 0.3},
    "patience": {"tol": 0.3, "n_iter_no_change": 4, "max_iter": 9},
    "in order": {"shuffle": False},
}


@pytest.mark.usefixtures("on_oracle")
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
@pytest.mark.parametrize("cls", BOTH)
def test_gone_on_with_after_a_cut_it_is_the_unbroken_fit(cls, changes, tmp_path, monkeypatch):
    def model():
        return cls(**{**SMALL, **changes})

    unbroken = model().fit(X, Y[cls])
    for every, epoch in ((1, 0), (1, 3), (2, 3), (5, 4)):
        folder = tmp_path / f"{every} {epoch}"
        how = Checkpoint(folder, every_epochs=every, every_minutes=None)
        with monkeypatch.context() as patch:
            cut_off(patch, epoch)
            with pytest.raises(PowerCut):
                model().fit(X, Y[cls], checkpoint=how)
        assert_same_fit(model().fit(X, Y[cls], checkpoint=how), unbroken)


@pytest.mark.usefixtures("on_oracle")
def test_what_follows_is_what_follows_the_unbroken_fit(tmp_path, monkeypatch):
    unbroken = DEQRegressor(**SMALL).fit(X, Y[DEQRegressor])
    cut_off(monkeypatch, 2)
    how = Checkpoint(tmp_path, every_epochs=1)
    with pytest.raises(PowerCut):
        DEQRegressor(**SMALL).fit(X, Y[DEQRegressor], checkpoint=how)
    monkeypatch.undo()
    monkeypatch.setattr(base, "get_engine", lambda *_: oracle.OracleEngine())
    again = DEQRegressor(**SMALL).fit(X, Y[DEQRegressor], checkpoint=how)
    for model in (unbroken, again):
        model.partial_fit(X, Y[DEQRegressor])
    assert_same_fit(again, unbroken)


@pytest.mark.usefixtures("on_oracle")
@pytest.mark.parametrize("early_stopping", [True, False])
def test_without_a_seed_the_draws_of_the_first_call_count(early_stopping, tmp_path, monkeypatch):
    model = DEQClassifier(**SMALL, early_stopping=early_stopping, validation_fraction=0.3)
    model.set_params(random_state=None)
    how, y = Checkpoint(tmp_path, every_epochs=1), Y[DEQClassifier]
    with monkeypatch.context() as patch:
        cut_off(patch, 3)
        with pytest.raises(PowerCut):
            model.fit(X, y, checkpoint=how)
    shutil.copytree(tmp_path, tmp_path / "copy")
    first = model.fit(X, y, checkpoint=how).params_
    second = model.fit(X, y, checkpoint=Checkpoint(tmp_path / "copy", every_epochs=1)).params_
    assert_params_equal(first, second)


@pytest.mark.usefixtures("on_oracle")
def test_a_warm_start_goes_on_from_its_own_weights(tmp_path, monkeypatch):
    y = Y[DEQRegressor]
    fitted = DEQRegressor(**SMALL, warm_start=True).fit(X, y)
    path = tmp_path / "model"
    fitted.save(path)
    unbroken, how = fitted.fit(X, y), Checkpoint(tmp_path / "folder", every_epochs=1)
    with monkeypatch.context() as patch:
        cut_off(patch, 3)
        with pytest.raises(PowerCut):
            pydeq.load(path).fit(X, y, checkpoint=how)
    assert_same_fit(pydeq.load(path).fit(X, y, checkpoint=how), unbroken)
    with pytest.raises(ValueError, match=r"weights to start from was .* and is now 'fresh'"):
        DEQRegressor(**SMALL, warm_start=True).fit(X, y, checkpoint=how)


@pytest.mark.usefixtures("on_oracle")
def test_ctrl_c_writes_what_was_done(tmp_path, monkeypatch):
    unbroken = DEQRegressor(**SMALL).fit(X, Y[DEQRegressor])
    with monkeypatch.context() as patch:
        cut_off(patch, 4, KeyboardInterrupt)
        with pytest.warns(UserWarning, match="interrupted after 4 of 6"):
            stopped = DEQRegressor(**SMALL).fit(X, Y[DEQRegressor], checkpoint=tmp_path)
    assert len(stopped.history_) == 4
    assert names(tmp_path) == [0, 4]
    cut_off(monkeypatch, 3)  # epochs that were done are not done again
    again = DEQRegressor(**SMALL).fit(X, Y[DEQRegressor], checkpoint=tmp_path)
    assert_same_fit(again, unbroken)


@pytest.mark.usefixtures("on_oracle")
def test_a_fit_that_had_ended_is_not_run_again(tmp_path, monkeypatch):
    first = DEQClassifier(**SMALL).fit(X, Y[DEQClassifier], checkpoint=str(tmp_path))
    cut_off(monkeypatch, 6)
    again = DEQClassifier(**SMALL).fit(X, Y[DEQClassifier], checkpoint=tmp_path)
    assert_same_fit(again, first)
    assert again.history_ == first.history_
    np.testing.assert_array_equal(again.predict(X), first.predict(X))


@pytest.mark.usefixtures("on_oracle")
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"every_epochs": 1}, [5, 6]),
        ({"every_epochs": 1, "keep": 3}, [4, 5, 6]),
        ({"every_epochs": 4, "every_minutes": None, "keep": 9}, [0, 4, 6]),
        ({"every_minutes": 0, "keep": 9}, [0, 1, 2, 3, 4, 5, 6]),
        ({"keep": 9}, [0, 6]),
    ],
)
def test_when_one_is_written_and_how_many_are_kept(how, expected, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    DEQRegressor(**SMALL).fit(X, Y[DEQRegressor], checkpoint=Checkpoint(tmp_path, **how))
    assert names(tmp_path) == expected
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("on_oracle")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda X, y: (X + 1e-12, y, None, {}), r": X differs\."),
        (lambda X, y: (X.astype("f4"), y, None, {}), ": X differs; "),
        (lambda X, y: (X[::-1], y, None, {}), r": X differs\."),
        (lambda X, y: (X, y * 2 + 1, None, {}), r": y differs\."),
        (lambda X, y: (X, y, np.arange(1, 41.0), {}), "sample_weight differs"),
        (lambda X, y: (X, y, None, {"alpha": 0.5}), r"alpha was 0.0001 and is now 0.5\."),
        (lambda X, y: (X, y, None, {"random_state": 1}), "random_state was 0 and is now 1"),
        (lambda X, y: (X, y, None, {"activation": "tanh"}), "activation was 'relu' and is now"),
    ],
)
def test_it_does_not_go_on_with_what_differs(change, said, tmp_path):
    y = Y[DEQRegressor]
    DEQRegressor(**SMALL).fit(X, y, checkpoint=tmp_path)
    X2, y2, weight, changes = change(X, y)
    model = DEQRegressor(**{**SMALL, **changes})
    with pytest.raises(ValueError, match=f"are of another fit.*{said}"):
        model.fit(X2, y2, weight, checkpoint=tmp_path)
    DEQRegressor(**SMALL, verbose=0).fit(X, y, checkpoint=tmp_path)


def test_it_does_not_go_on_with_another_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "get_engine", lambda *_: oracle.OracleEngine())
    DEQRegressor(**SMALL).fit(X, Y[DEQRegressor], checkpoint=tmp_path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="engine was 'oracle' and is now 'jax'"):
        DEQRegressor(**SMALL, engine="jax").fit(X, Y[DEQRegressor], checkpoint=tmp_path)


@pytest.mark.usefixtures("on_oracle")
def test_it_does_not_go_on_from_another_format(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_file, "FORMAT", 2)
        DEQRegressor(**SMALL).fit(X, Y[DEQRegressor], checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"in format 2; pydeq .* goes on from format 1"):
        DEQRegressor(**SMALL).fit(X, Y[DEQRegressor], checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"folder": 3}, "checkpoint must be a folder's path or a pydeq.Checkpoint; got int"),
        ({"every_epochs": 0}, "every_epochs must be an integer of at least 1"),
        ({"every_minutes": -1.0}, "every_minutes must be a finite number of at least 0"),
        ({"keep": 0}, "keep must be an integer of at least 1"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(values, said):
    with pytest.raises(ValueError, match=said):
        Checkpoint(**{"folder": "here", **values})
