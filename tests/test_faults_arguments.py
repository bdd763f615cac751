"""Whatever is passed, it is taken or refused in words: parameters, data, weights, arguments.

``pytest tests/test_faults_arguments.py --fuzz 3000`` is the long run.
"""

import datetime
import decimal
import fractions
import pathlib
import warnings

import numpy as np
import oracle
import pandas
import pytest
import scipy.sparse

from pydeq import DEQClassifier, DEQRegressor, fixed_point
from pydeq.estimators import base

REFUSALS = (ValueError, TypeError)
N = 8


def hostile(rng):
    """Return a value that somebody might pass for anything."""
    values = (
        lambda: int(rng.integers(-3, 4)),
        lambda: 10 ** int(rng.integers(1, 400)),
        lambda: -(2 ** int(rng.integers(7, 70))),
        lambda: float(10.0 ** rng.uniform(-320, 308)),
        lambda: rng.choice([np.nan, np.inf, -np.inf, -0.0, 0.0]),
        lambda: str(rng.choice(["", "auto", "relu", "none", "julia!", "1", "\ud800", "cpu"])),
        lambda: rng.choice([None, True, False, Ellipsis, NotImplemented]),
        lambda: [hostile(rng) for _ in range(rng.integers(0, 3))],
        lambda: tuple(int(n) for n in rng.integers(-1, 9, rng.integers(0, 4))),
        lambda: {hostile_key(rng): 1},
        lambda: {1, 2},
        lambda: np.array(rng.normal(size=rng.integers(0, 3, 2))),
        lambda: np.array(3),
        lambda: np.uint64(2**64 - 1),
        lambda: np.float16(0.5),
        lambda: np.datetime64("2020-01-01"),
        lambda: complex(1, 2),
        lambda: decimal.Decimal("0.1"),
        lambda: fractions.Fraction(1, 3),
        lambda: datetime.timedelta(1),
        lambda: b"bytes",
        lambda: pathlib.Path("."),
        lambda: object(),
        lambda: len,
        lambda: range(3),
        lambda: np.random.RandomState(0),
        lambda: np.random.default_rng(0),
    )
    return values[rng.integers(len(values))]()


def hostile_key(rng):
    return str(rng.integers(9))


def hostile_data(rng):
    """Return what somebody might pass as samples, targets or weights."""
    shape = tuple(rng.integers(0, 5, rng.integers(0, 4)))
    dtype = rng.choice(["f2", "f4", "f8", "g", "i1", "u8", "?", "c8", "U3", "O", "M8[s]", "S2"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = (10.0 ** rng.uniform(-5, 5) * rng.normal(size=shape or (N, 3))).astype(dtype)
    forms = (
        lambda: array,
        lambda: array.tolist(),
        lambda: np.ma.masked_array(np.ones((N, 3)), rng.random((N, 3)) < 0.1),
        lambda: pandas.DataFrame(rng.normal(size=(N, 3))).map(lambda v: v if v > -1 else None),
        lambda: scipy.sparse.eye_array(N, 3).tocsr(),
        lambda: np.full((N, 3), rng.choice([np.nan, np.inf, 1e308, 5e-324, 0.0])),
        lambda: hostile(rng),
    )
    return forms[rng.integers(len(forms))]()


def cases(rng):
    """Return calls with one hostile argument each."""
    cls = DEQClassifier if rng.random() < 0.5 else DEQRegressor
    X = rng.normal(size=(N, 3))
    y = np.arange(N) % 2 if cls is DEQClassifier else X[:, 0]
    model = cls(n_state=3, hidden_layer_sizes=2, max_iter=1, random_state=0)
    fitted = cls(**model.get_params()).fit(X, y)
    name = str(rng.choice(sorted(model.get_params())))
    return (
        lambda: model.set_params(**{name: hostile(rng)}).fit(X, y),
        lambda: fitted.set_params(**{name: hostile(rng)}).predict(X),
        lambda: model.fit(hostile_data(rng), y),
        lambda: model.fit(X, hostile_data(rng)),
        lambda: model.fit(X, y, hostile_data(rng)),
        lambda: fitted.partial_fit(hostile_data(rng), y),
        lambda: fitted.predict(hostile_data(rng)),
        lambda: fitted.equilibrium(X, certify=hostile(rng)),
        lambda: fitted.equilibrium(X, out=hostile(rng)),
        lambda: fitted.trajectory(X, hostile(rng)),
        lambda: fitted.score(X, hostile_data(rng)),
        lambda: DEQClassifier(max_iter=1).partial_fit(X, y, classes=hostile_data(rng)),
    )


@pytest.fixture
def n_calls(request):
    return request.config.getoption("--fuzz") or 100


def outcome(call):
    """Return "works", "refused", or the error that is not in words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except Exception as error:
            in_words = isinstance(error, REFUSALS) and len(str(error)) > 10
            return "refused" if in_words else error
    return "works"


def test_every_call_works_or_is_refused_in_words(n_calls, monkeypatch):
    monkeypatch.setattr(base, "get_engine", lambda *_: oracle.OracleEngine())
    outcomes = []
    for seed in range(n_calls):
        calls = cases(np.random.default_rng(seed))
        outcomes.append(outcome(calls[seed % len(calls)]))
    bad = [(seed, o) for seed, o in enumerate(outcomes) if isinstance(o, Exception)]
    assert not bad
    assert 0.2 * n_calls < outcomes.count("refused") < 0.95 * n_calls


def test_fixed_point_works_or_refuses_in_words(n_calls):
    for seed in range(n_calls):
        rng = np.random.default_rng(seed)
        start, settings = hostile_data(rng), {}
        if seed % 2:
            start, name = 1.0, str(rng.choice(["abstol", "reltol", "max_steps"]))
            settings = {name: hostile(rng)}
        found = outcome(lambda: fixed_point(lambda u: 0.5 * np.cos(u), start, **settings))  # noqa: B023
        assert not isinstance(found, Exception), (seed, found)
