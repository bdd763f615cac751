"""A call that raises changes nothing; a reader in another thread sees one model, whole."""

import pickle
import sys
import threading
import warnings

import numpy as np
import oracle
import pytest
from helpers import assert_params_equal

import pydeq.estimators.base as base
from pydeq import DEQClassifier, DEQRegressor, EngineUnavailableError

SMALL = {"n_state": 3, "hidden_layer_sizes": 4, "max_iter": 2, "batch_size": 8, "random_state": 0}
BOTH = [DEQRegressor, DEQClassifier]


def data(cls, n_features=3, labels=("cat", "dog")):
    rng = np.random.default_rng(n_features)
    X = rng.normal(size=(24, n_features))
    return X, X[:, 0] if cls is DEQRegressor else np.array(labels)[np.arange(24) % len(labels)]


def others(cls):
    """Return data of another width, with other labels, another shape of y."""
    X, y = data(cls, 5, labels=("up", "down", "left"))
    return X, np.column_stack([y, y]) if cls is DEQRegressor else y


@pytest.fixture
def engine(monkeypatch):
    engine = oracle.OracleEngine()
    monkeypatch.setattr(base, "get_engine", lambda *_: engine)
    return engine


def fingerprint(model):
    """Return all that there is of a model: no attribute new, none gone, none changed inside."""
    return {name: pickle.dumps(value) for name, value in vars(model).items()}


def failing(function, error):
    def fail(*args, **kwargs):
        function(*args, **kwargs)
        raise error

    return fail


IN_BASE = ["check_training", "get_engine", "start_fit", "split", "train", "Start"]
IN_ENGINE = ["open"]
IN_SESSION = ["load_data", "train_epoch", "params", "optimizer_state", "equilibrium", "close"]
IN_ESTIMATOR = ["_learn_target", "_encode_target", "_start", "_keep"]
IN_MODULES = ["parameters.fit_specs", "parameters.check_engine"]


def inject(monkeypatch, cls, where, error):
    """Make the function `where` raise as soon as it has done its work."""
    if where in IN_BASE:
        owner, name = base, where
    elif where in IN_ESTIMATOR:
        owner, name = cls, where
    elif where in IN_SESSION:
        owner, name = oracle.OracleSession, where
    elif where in IN_ENGINE:
        owner, name = oracle.OracleEngine, where
    else:
        module, name = where.split(".")
        owner = getattr(base, module)
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), error))


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize(
    "where",
    [*IN_BASE[:-1], *IN_ENGINE, *IN_SESSION, *IN_ESTIMATOR, *IN_MODULES, "advice.warn_about_fit"],
)
@pytest.mark.parametrize("cls", BOTH)
def test_a_refit_that_fails_anywhere_leaves_the_model_as_it_was(
    cls, where, error, engine, monkeypatch
):
    random_state = np.random.RandomState(0)
    model = cls(**SMALL).set_params(random_state=random_state, early_stopping=True)
    model.set_params(validation_fraction=0.25).fit(*data(cls))
    before, X = fingerprint(model), data(cls)[0]
    expected = model.predict(X)
    with monkeypatch.context() as patch:
        inject(patch, cls, where, error)
        with pytest.raises(error):
            model.fit(*others(cls))
    assert fingerprint(model) == before
    np.testing.assert_array_equal(model.predict(X), expected)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize(
    "where",
    [
        *("check_training", "get_engine", "train", "Start", *IN_ENGINE, "_encode_target", "_keep"),
        *("load_data", "train_epoch", "params", "optimizer_state", "close", *IN_MODULES),
    ],
)
@pytest.mark.parametrize("cls", BOTH)
def test_what_follows_a_partial_fit_that_failed_is_the_unbroken_run(
    cls, where, error, engine, monkeypatch
):
    X, y = data(cls)
    classes = {"classes": ["cat", "dog"]} if cls is DEQClassifier else {}
    unbroken, model = cls(**SMALL), cls(**SMALL)
    for _ in range(3):
        unbroken.partial_fit(X, y, **classes)
    model.partial_fit(X, y, **classes)
    for _ in range(2):
        with monkeypatch.context() as patch:
            inject(patch, cls, where, error)
            with pytest.raises(error):
                model.partial_fit(X, y)
        model.partial_fit(X, y)
    assert_params_equal(model.params_, unbroken.params_)
    assert_params_equal(model.optimizer_state_, unbroken.optimizer_state_)
    assert model.loss_curve_ == unbroken.loss_curve_
    assert model._rng.bit_generator.state == unbroken._rng.bit_generator.state


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -1.0}, "alpha"),
        ({"warm_start": "yes"}, "warm_start"),
        ({"device": "abacus"}, "device"),
        ({"early_stopping": True, "validation_fraction": 0.01}, "at least 2"),
        ({"random_state": "zero"}, "seed"),
        ({"warm_start": True}, "5 features"),
    ],
)
def test_a_refit_with_bad_parameters_leaves_the_model_as_it_was(cls, changes, message, engine):
    model = cls(**SMALL).fit(*data(cls)).set_params(**changes)
    before = fingerprint(model)
    with pytest.raises(ValueError, match=message):
        model.fit(*others(cls))
    assert fingerprint(model) == before


@pytest.mark.parametrize("cls", BOTH)
def test_a_refit_without_its_engine_leaves_the_model_as_it_was(cls, engine, monkeypatch):
    model = cls(**SMALL).fit(*data(cls))
    before = fingerprint(model)

    def refuse(*asked):
        raise EngineUnavailableError("not here")

    monkeypatch.setattr(base, "get_engine", refuse)
    with pytest.raises(EngineUnavailableError):
        model.fit(*others(cls))
    assert fingerprint(model) == before


def test_a_warning_that_is_an_error_leaves_the_model_as_it_was(engine, monkeypatch):
    model = DEQRegressor(**SMALL).fit(*data(DEQRegressor))
    before, train_epoch = fingerprint(model), oracle.OracleSession.train_epoch

    def one_epoch(session, *args):
        if session._epoch == 1:
            raise KeyboardInterrupt
        return train_epoch(session, *args)

    monkeypatch.setattr(oracle.OracleSession, "train_epoch", one_epoch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="was interrupted after 1 of 2"):
            model.fit(*others(DEQRegressor))
    assert fingerprint(model) == before


class _Lines:
    """Raise at the `at`-th line that runs in pydeq's estimators or training."""

    FILES = ("/pydeq/estimators/", "/pydeq/training/loop.py", "/pydeq/training/start.py")

    def __init__(self, at):
        self.at, self.n_seen = at, 0

    def __call__(self, frame, event, arg):
        if not any(part in frame.f_code.co_filename for part in self.FILES):
            return None
        if event == "line":
            self.n_seen += 1
            if self.n_seen == self.at:
                raise KeyboardInterrupt
        return self

    def run(self, call):
        """Return whether `call` was cut off."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            call()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False


def learned(model):
    """Return the fingerprint but for the wall time of the epochs."""
    parts = {name: part for name, part in fingerprint(model).items() if name != "history_"}
    return parts | {"loss": model.loss_curve_}


@pytest.mark.filterwarnings("ignore:.*interrupted:UserWarning")
@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_ctrl_c_at_any_line_finds_the_old_model_or_the_new_one(cls, method, engine):
    X, y = data(cls)
    (X2, y2) = (X, y) if method == "partial_fit" else others(cls)
    model = cls(**SMALL).set_params(max_iter=1).fit(X, y)
    content = pickle.dumps(model)
    # Out of the pickle, because one string in two places is written otherwise than two.
    old = learned(pickle.loads(content))
    new = learned(getattr(pickle.loads(content), method)(X2, y2))
    assert new != old
    at, n_old = 0, 0
    while True:
        at += 1
        lines, model = _Lines(at), pickle.loads(content)
        cut_off = lines.run(lambda model=model: getattr(model, method)(X2, y2))
        found = learned(model)
        assert found in (old, new)
        n_old += found == old
        assert cut_off or found == new
        if lines.n_seen < at:
            break
    assert n_old > 50


def test_predictions_in_another_thread_are_of_one_model(engine):
    """Every refit has other labels, as many classes more, in the same width."""
    X, two = data(DEQClassifier)
    three = np.array(["up", "down", "left"])[np.arange(24) % 3]
    model = DEQClassifier(**SMALL).set_params(max_iter=1)
    expected = {}
    for y in (two, three):
        model.fit(X, y)
        expected[y[0]] = (model.predict(X).tolist(), model.predict_proba(X).tolist())
    wrong, seen, reads, stop = [], set(), [], threading.Event()

    def read():
        while not stop.is_set():
            for i, found in enumerate((model.predict(X), model.predict_proba(X))):
                hits = [name for name, what in expected.items() if what[i] == found.tolist()]
                seen.update(hits)
                reads.append(i)
                if not hits:
                    wrong.append(found)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        # Until the reader has met both models, which it does unless it hangs.
        for _ in range(10_000):
            model.fit(X, two)
            model.fit(X, three)
            if len(seen) == 2 and len(reads) > 300:
                break
    finally:
        stop.set()
        reader.join(30)
        sys.setswitchinterval(interval)
    assert not reader.is_alive()
    assert not wrong
    assert len(seen) == 2  # the reader has met both models
