"""Every engine's epochs: steps, reports, what fails and what is undone; its sessions."""

import dataclasses
import signal

import numpy as np
import pytest
from contract import (
    MODEL,
    OPTIMIZER,
    ORACLE,
    TRAINING,
    TWO_SLOPES,
    one_easy_sample,
    open_session,
    orders,
    train,
    training_case,
    two_slopes,
)
from helpers import (
    GRADIENT_TOLERANCE,
    TRAINED_TOLERANCE,
    assert_params_equal,
    assert_params_near,
    random_batch,
    random_params,
)

from pydeq.engines import epoch_report
from pydeq.model import OptimizerSpec, SolverSpec

pytestmark = pytest.mark.usefixtures("nothing_kept")


@pytest.mark.parametrize("case", TRAINING)
def test_training_is_the_oracles(engine, case):
    args, data, dtype = training_case(case)
    session, reports = train(engine, args, data, orders(20))  # batches of 8, 8 and 4
    oracle, expected_reports = train(ORACLE, args, data, orders(20))
    tolerance = TRAINED_TOLERANCE[dtype]
    assert_params_near(session.params(), oracle.params(), tolerance)
    assert_state_near(session.optimizer_state(), oracle.optimizer_state(), tolerance)
    for found, expected in zip(reports, expected_reports, strict=True):
        assert found.loss == pytest.approx(expected.loss, rel=tolerance)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=tolerance)
        assert found.n_failed == expected.n_failed == 0
        assert found.n_evals > 1
    start = args[-1]
    for name, value in session.params().items():
        is_frozen = name.startswith("encoder.") and not args[2].train_encoder
        assert np.array_equal(value, start[name]) == is_frozen, name


def assert_state_near(found, expected, tolerance):
    """Compare optimiser states: ``count`` exactly, m and v by value."""
    assert found.keys() == expected.keys()
    assert found["count"].dtype == np.int64
    assert found["count"] == expected["count"] == 9
    for letter in "mv":
        moments = [
            {name: value for name, value in state.items() if name.startswith(f"{letter}.")}
            for state in (found, expected)
        ]
        assert_params_near(*moments, 5 * tolerance)


def test_each_batch_is_reported_in_order(engine):
    args, data, _ = training_case("adam")
    session = open_session(engine, *args)
    session.load_data(*data)
    found = []
    report = session.train_epoch(orders(20)[0], 8, found.append)
    oracle = open_session(ORACLE, *args)
    oracle.load_data(*data)
    expected = []
    oracle.train_epoch(orders(20)[0], 8, expected.append)
    assert [batch.n_samples for batch in found] == [8, 8, 4]
    for name in ("loss", "weight", "grad_norm"):
        values = [getattr(batch, name) for batch in expected]
        np.testing.assert_allclose([getattr(b, name) for b in found], values, rtol=1e-6)
    assert report == epoch_report(found)


def test_an_exception_in_the_callback_undoes_the_epoch(engine):
    args, data, _ = training_case("adam")
    session = open_session(engine, *args)
    session.load_data(*data)

    def fail(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.train_epoch(np.arange(20), 8, fail)
    assert_params_equal(session.params(), args[-1])
    assert session.optimizer_state()["count"] == 0


def test_an_order_may_leave_samples_out_and_repeat_them(engine):
    args, data, _ = training_case("contractive")
    order = np.array([3, 3, 17, 0, 5, 3, 1, 2, 19, 18, 17])
    session, _ = train(engine, args, data, [order])
    oracle, _ = train(ORACLE, args, data, [order])
    assert_params_near(session.params(), oracle.params(), TRAINED_TOLERANCE["float64"])


def test_report_is_of_the_weights_before_the_step(engine):
    # (Not by tsit5: in Julia the samples of a training batch share the ODE's steps.)
    few = SolverSpec("fixed_point", abstol=1e-9, reltol=1e-9, max_steps=2)
    params, data = one_easy_sample()
    session = engine.open(MODEL, few, OPTIMIZER, params)
    session.load_data(*data)
    found = session.equilibrium(data[0])
    report = session.train_epoch(np.arange(8), 8)
    assert report.n_failed == (~found.converged).sum() == 7
    assert report.worst_residual == pytest.approx(found.residual.max(), rel=1e-6)
    assert report.n_evals == pytest.approx(found.n_evals.mean())


@pytest.mark.parametrize("case", ["adam", "contractive"])
def test_samples_of_weight_zero_have_no_influence(engine, case):
    args, (x, target, weight), _ = training_case(case)
    weight[::2] = 0
    batch = slice(0, 8)
    loss, grad = engine.open(*args).loss_and_grad(x[batch], target[batch], weight[batch])
    x_other, target_other = x.copy(), target.copy()
    is_class = target.ndim == 1
    x_other[::2], target_other[::2] = 1e300, 0 if is_class else -1e300  # whatever they are
    session = engine.open(*args)
    other = session.loss_and_grad(x_other[batch], target_other[batch], weight[batch])
    assert loss == pytest.approx(other[0], rel=1e-12)
    assert_params_near(other[1], grad, 1e-12)
    oracle_loss, _ = ORACLE.open(*args).loss_and_grad(
        *(array[batch][weight[batch] > 0] for array in (x, target, weight))
    )
    assert loss == pytest.approx(oracle_loss, rel=GRADIENT_TOLERANCE["float64"])

    trained, reports = train(engine, args, (x, target, weight), orders(20))
    others, other_reports = train(engine, args, (x_other, target_other, weight), orders(20))
    assert_params_near(others.params(), trained.params(), 1e-10)
    for report, other_report in zip(reports, other_reports, strict=True):
        assert report.n_failed == other_report.n_failed == 0
        assert other_report.loss == pytest.approx(report.loss, rel=1e-10)


@pytest.mark.parametrize(
    ("adjoint", "solver", "horizon"),
    [
        ("implicit", "tsit5", None),
        ("jfb", "fixed_point", None),
        ("unrolled", "fixed_point", None),
        ("implicit", "tsit5", 8.0),
    ],
)
def test_failed_samples_are_counted_and_left_out(engine, adjoint, solver, horizon):
    # Above 0 the state grows as 4 ** k, or exp(3 t) from 1e300, until it is not finite.
    model = dataclasses.replace(TWO_SLOPES, horizon=horizon)
    max_steps = 1000 if horizon is None else 300
    spec = SolverSpec(solver, 1e-10, 1e-10, max_steps=max_steps, adjoint=adjoint)
    args = (model, spec, OptimizerSpec(learning_rate=0.01), two_slopes(4.0, 0.5))
    x = np.array([[1.0], [-1.0], [2.0], [-2.0], [-0.5], [3.0], [-3.0], [-0.2]])
    target, weight, epoch = -x, np.linspace(1, 2, 8), np.array([7, 0, 1, 2, 3, 4, 5, 6])
    below = x[:, 0] < 0
    if horizon is not None:
        x[~below] *= 1e300

    session, (report,) = train(engine, args, (x, target, weight), [epoch], batch_size=4)
    oracle, (expected,) = train(ORACLE, args, (x, target, weight * below), [epoch], batch_size=4)
    assert report.n_failed == (~below).sum()
    assert not report.worst_residual <= 1e-3
    assert report.loss == pytest.approx(expected.loss, rel=1e-6)
    assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-6)
    assert_params_near(session.params(), oracle.params(), TRAINED_TOLERANCE["float64"])


def test_a_batch_with_no_sample_left_takes_no_step(engine):
    args = (
        TWO_SLOPES,
        SolverSpec(max_steps=200),
        OptimizerSpec(learning_rate=0.01, alpha=0.1),
        two_slopes(1.5, 0.5),
    )
    data = (np.linspace(1, 3, 6)[:, None], np.ones((6, 1)), np.ones(6))
    session, (report,) = train(engine, args, data, [np.arange(6)], batch_size=4)
    assert report.n_failed == 6
    assert_params_equal(session.params(), args[-1])
    state = session.optimizer_state()
    assert state["count"] == 0
    assert not any(value.any() for value in state.values())


# --- sessions ---


@pytest.mark.parametrize("case", ["adam", "contractive", "float32"])
def test_a_session_goes_on_where_another_ended(engine, case):
    args, data, _ = training_case(case)
    epochs = orders(20)
    straight, _ = train(engine, args, data, epochs)
    first, _ = train(engine, args, data, epochs[:2])
    params, state = first.params(), first.optimizer_state()
    first.close()
    second, _ = train(engine, (*args[:3], params), data, epochs[2:], optimizer_state=state)
    assert_params_equal(second.params(), straight.params())
    assert_params_equal(second.optimizer_state(), straight.optimizer_state())


def test_an_engine_reads_the_optimizer_state_of_another(engine):
    args, data, _ = training_case("adam")
    epochs = orders(20)
    oracle, _ = train(ORACLE, args, data, epochs[:2])
    state = oracle.optimizer_state()
    session, _ = train(
        engine, (*args[:3], oracle.params()), data, epochs[2:], optimizer_state=state
    )
    oracle.train_epoch(epochs[2], 8)
    assert_params_near(session.params(), oracle.params(), TRAINED_TOLERANCE["float64"])


def test_a_failing_epoch_changes_nothing(engine):
    args, data, _ = training_case("adam")
    session, _ = train(engine, args, data, orders(20, 1))
    params, state = session.params(), session.optimizer_state()
    with pytest.raises(IndexError):
        session.train_epoch(np.append(np.arange(16), 20), 8)  # there is no sample 20
    assert_params_equal(session.params(), params)
    assert_params_equal(session.optimizer_state(), state)
    # and the session goes on as if it had not been asked
    epoch = orders(20, 2)[1]
    session.train_epoch(epoch, 8)
    undisturbed, _ = train(engine, args, data, orders(20, 2))
    assert_params_equal(session.params(), undisturbed.params())


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a POSIX timer")
def test_an_interrupted_epoch_changes_nothing(engine):
    args, data, _ = training_case("adam")
    session, _ = train(engine, args, data, orders(20, 1))
    params, state = session.params(), session.optimizer_state()

    def interrupt(signum, frame):
        raise KeyboardInterrupt

    done = []
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            session.train_epoch(np.zeros(400_000, np.int64), 8, done.append)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(done) < 50_000  # it was heard between batches
    assert_params_equal(session.params(), params)
    assert_params_equal(session.optimizer_state(), state)


def test_params_are_copies_in_and_out(engine):
    args, data, _ = training_case("adam")
    start = args[-1]
    kept = {name: value.copy() for name, value in start.items()}
    session = engine.open(*args)
    for value in start.values():
        value[:] = 7
    assert_params_equal(session.params(), kept)
    for value in session.params().values():
        value[:] = 8
    assert_params_equal(session.params(), kept)
    session.load_data(*data)
    session.train_epoch(np.arange(20), 8)
    state = session.optimizer_state()
    for name, value in session.optimizer_state().items():
        value[...] = 9
        assert state[name] is not value
    assert_params_equal(session.optimizer_state(), state)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_result_has_the_dtype_of_the_weights(engine, dtype):
    dtype = np.dtype(dtype)
    batch = random_batch(MODEL, OPTIMIZER, dtype=dtype)
    session = engine.open(MODEL, SolverSpec(), OPTIMIZER, random_params(MODEL, dtype=dtype))
    found = session.equilibrium(batch[0])
    assert found.state.dtype == found.output.dtype == found.residual.dtype == dtype
    assert found.n_evals.dtype == np.int64
    assert found.converged.dtype == np.bool_
    assert session.trajectory(batch[0], 2).dtype == dtype
    session.load_data(*batch)
    report = session.train_epoch(np.arange(8), 8)
    for field in dataclasses.fields(report):
        kind = int if field.name == "n_failed" else float
        assert type(getattr(report, field.name)) is kind, field.name
    named = {**session.params(), **session.loss_and_grad(*batch)[1]}
    state = session.optimizer_state()
    assert state.pop("count").dtype == np.int64
    assert {type(value) for value in [*named.values(), *state.values()]} == {np.ndarray}
    assert {value.dtype for value in [*named.values(), *state.values()]} == {dtype}
