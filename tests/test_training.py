"""The epoch loop, on a session whose reports are scripted."""

import math

import numpy as np
import pytest

from pydeq.engines import AbstractSession, EpochReport
from pydeq.model import Equilibrium, TrainSpec
from pydeq.training import Data, Validation, train
from pydeq.training.state import Moment

N = 6
DATA = Data(np.arange(2.0 * N).reshape(N, 2), np.ones((N, 1)), np.ones(N))
SPEC = TrainSpec(4, 5, True, 0.0, 5, False, False, 0.1)


def report(loss=1.0, n_failed=0):
    return EpochReport(loss, grad_norm=0.5, n_evals=8.0, worst_residual=1e-4, n_failed=n_failed)


class ScriptedSession(AbstractSession):
    """Its single weight is the number of epochs done; an exception in the script is raised."""

    def __init__(self, script, weights=None, outputs=None):
        self.script = list(script)
        self.weights = weights or {}
        self.outputs = iter(outputs or [])
        self.epoch = 0
        self.orders = []

    def load_data(self, x, target, weight):
        self.loaded = (x, target, weight)

    def train_epoch(self, order, batch_size, on_batch=None):
        self.orders.append((order.copy(), batch_size))
        step = self.script[self.epoch]
        if isinstance(step, BaseException):
            raise step
        self.epoch += 1
        return step

    def params(self):
        return {"w": np.array([float(self.weights.get(self.epoch, self.epoch))])}

    def optimizer_state(self):
        return {"count": np.array(self.epoch)}

    def equilibrium(self, x):
        output = next(self.outputs)
        if isinstance(output, BaseException):
            raise output
        return Equilibrium(x, np.full((len(x), 1), output), *(np.zeros(len(x)),) * 3)

    def loss_and_grad(self, x, target, weight):
        raise NotImplementedError

    def trajectory(self, x, depth):
        raise NotImplementedError

    def jvp(self, x, state, tangent):
        raise NotImplementedError

    def close(self):
        raise NotImplementedError


def run(script, spec=SPEC, validation=None, seed=0, **session):
    session = ScriptedSession(script, **session)
    return session, train(session, DATA, np.random.default_rng(seed), spec, validation)


def spec(**changes):
    return TrainSpec(**{**vars(SPEC), **changes})


def epoch_kept(result):
    assert result.kept.optimizer_state["count"] == result.kept.params["w"][0]
    assert result.kept.params["w"][0] == result.kept_epoch
    return result.kept_epoch


def test_a_full_run_reports_each_epoch_and_keeps_the_last():
    losses = [5.0, 4.0, 3.0, 2.0, 1.0]
    session, result = run([report(loss) for loss in losses])
    assert result.history.stop_reason == "max_iter"
    assert result.history.loss == losses
    assert epoch_kept(result) == 5
    record = result.history[2]
    assert (record.grad_norm, record.n_evals, record.worst_residual) == (0.5, 8.0, 1e-4)
    assert record.validation_score is None
    assert all(seconds > 0 for seconds in result.history.seconds)
    assert session.loaded == (DATA.x, DATA.target, DATA.weight)


def test_the_newest_of_k_weighs_three_parts_in_k_and_two_and_a_third_at_least():
    _, result = run([report()] * 8, spec(average=True, max_iter=8))
    mean = 0.0
    for epoch, share in enumerate([1, 3 / 4, 3 / 5, 3 / 6, 3 / 7, 3 / 8, 1 / 3, 1 / 3], 1):
        mean += share * (epoch - mean)
    assert result.kept.params["w"][0] == pytest.approx(mean)
    assert result.kept.optimizer_state["count"] == 8
    assert result.kept_epoch == 8


def test_the_average_leaves_out_an_epoch_that_diverged():
    _, result = run([report(), report(), report(math.inf)], spec(average=True))
    assert result.kept.params["w"][0] == pytest.approx(1.75)


def test_early_stopping_keeps_the_best_epoch_not_an_average():
    validation = Validation(DATA, lambda output, *_: output[0, 0])
    _, result = run([report()] * 5, spec(average=True), validation, outputs=[1, 2, 5, 4, 3])
    assert epoch_kept(result) == 3


def test_each_epoch_is_a_new_order_that_the_generator_decides():
    first, _ = run([report()] * 5)
    again, _ = run([report()] * 5)
    other, _ = run([report()] * 5, seed=1)
    orders = [tuple(order) for order, _ in first.orders]
    assert orders == [tuple(order) for order, _ in again.orders]
    assert orders != [tuple(order) for order, _ in other.orders]
    assert len(set(orders)) > 1
    assert all(sorted(order) == list(range(N)) for order in orders)
    assert {batch_size for _, batch_size in first.orders} == {4}


def test_without_shuffle_the_order_is_that_of_the_data():
    session, _ = run([report()] * 5, spec(shuffle=False))
    assert all(order.tolist() == list(range(N)) for order, _ in session.orders)


# --- when it ends ---


def test_stops_after_more_than_n_iter_no_change_epochs_without_improvement():
    """As scikit-learn's MLP: 1 epoch sets the best, 3 are no better by tol, > 2 ends it."""
    losses = [1.0, 0.95, 0.92, 0.91, 0.5]
    _, result = run([report(loss) for loss in losses], spec(tol=0.1, n_iter_no_change=2))
    assert result.history.stop_reason == "tol"
    assert result.history.loss == losses[:4]
    assert epoch_kept(result) == 4


def test_improvement_resets_the_patience():
    losses = [1.0, 0.95, 0.8, 0.79, 0.78]
    _, result = run([report(loss) for loss in losses], spec(tol=0.1, n_iter_no_change=2))
    assert result.history.stop_reason == "max_iter"


def test_an_overshoot_is_not_counted():
    """One batch an epoch: only losses up to 1.25 times the least, and tol, are near it."""
    losses = [1.0, 4.0, 9.0, 3.0, 1.3, 1.2, 1.1, 1.05, 0.2, 0.1]
    options = spec(batch_size=N, tol=0.01, n_iter_no_change=2, max_iter=10)
    _, result = run([report(loss) for loss in losses], options)
    assert result.history.stop_reason == "tol"
    assert result.history.loss == losses[:8]
    # Batches of an epoch scatter: up to 2 times the least, and tol.
    losses = [1.0, 4.0, 2.1, 1.9, 1.3, 1.2, 0.1]
    _, result = run([report(loss) for loss in losses], spec(**vars(options) | {"batch_size": 4}))
    assert result.history.loss == losses[:6]


def test_what_no_longer_improves_keeps_the_weights_of_the_least_loss():
    """The loss of an epoch is that of the weights it begins with."""
    losses = [1.0, 0.5, 0.4, 0.44, 0.45, 0.46]
    options = spec(batch_size=N, tol=0.01, n_iter_no_change=2, max_iter=10)
    _, result = run([report(loss) for loss in losses], options)
    assert result.history.stop_reason == "tol"
    assert epoch_kept(result) == 2
    _, result = run([report(loss) for loss in losses[:4]], spec(batch_size=N, max_iter=4))
    assert result.history.stop_reason == "max_iter"
    assert epoch_kept(result) == 4


def test_patience_of_max_iter_never_ends_a_fit():
    _, result = run([report(1.0)] * 5, spec(tol=1.0, n_iter_no_change=5))
    assert result.history.stop_reason == "max_iter"


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_ends_the_fit_with_the_weights_from_before(loss):
    _, result = run([report(2.0), report(loss, n_failed=N - 1), report(1.0)])
    assert result.history.stop_reason == "diverged"
    assert len(result.history) == 2
    assert epoch_kept(result) == 1


@pytest.mark.parametrize("weight", [math.inf, math.nan])
def test_a_weight_that_is_not_finite_ends_the_fit_with_the_weights_from_before(weight):
    script = [report(2.0), report(1.5), report(math.nan, n_failed=N)]
    _, result = run(script, weights={3: weight})
    assert result.history.stop_reason == "diverged"
    assert epoch_kept(result) == 2


def test_divergence_in_the_first_epoch_keeps_the_start():
    _, result = run([report(math.inf)])
    assert result.history.stop_reason == "diverged"
    assert epoch_kept(result) == 0


def test_checkpoint_counts_the_optimiser_state_in():
    good, bad = {"w": np.ones(2)}, {"v.w": np.array([1.0, np.inf])}
    assert Moment(good, {}).is_finite()
    assert not Moment(good, bad).is_finite()


def test_an_epoch_in_which_every_sample_failed_ends_the_fit():
    _, result = run([report(2.0), report(math.nan, n_failed=N), report(1.0)])
    assert result.history.stop_reason == "no_equilibrium"
    assert result.history.n_failed == [0, N]
    assert result.kept_epoch == 1


def test_an_epoch_in_which_some_samples_failed_does_not():
    _, result = run([report(n_failed=N - 1)] * 5)
    assert result.history.stop_reason == "max_iter"


def test_all_samples_failed_but_counted_does_not_end_it():
    """With unrolled gradients samples that did not converge still give a loss."""
    _, result = run([report(1.0, n_failed=N)] * 5)
    assert result.history.stop_reason == "max_iter"


# --- Ctrl-C ---


def test_interrupt_keeps_the_epochs_done():
    _, result = run([report(3.0), report(2.0), report(1.0), KeyboardInterrupt()])
    assert result.history.stop_reason == "interrupted"
    assert result.history.loss == [3.0, 2.0, 1.0]
    assert epoch_kept(result) == 3


def test_interrupt_in_the_first_epoch_is_raised():
    with pytest.raises(KeyboardInterrupt):
        run([KeyboardInterrupt()])


def test_the_epoch_cut_off_has_drawn_nothing():
    rng, other = np.random.default_rng(0), np.random.default_rng(0)
    train(ScriptedSession([report(), KeyboardInterrupt()]), DATA, rng, SPEC)
    train(ScriptedSession([report()]), DATA, other, spec(max_iter=1))
    assert rng.bit_generator.state == other.bit_generator.state


def test_interrupt_while_validating_undoes_the_epoch():
    outputs = [0.5, KeyboardInterrupt()]
    _, result = run([report()] * 5, validation=VALIDATION, outputs=outputs)
    assert result.history.stop_reason == "interrupted"
    assert len(result.history) == 1
    assert epoch_kept(result) == 1


def test_other_exceptions_pass():
    with pytest.raises(RuntimeError, match="engine broke"):
        run([report(), RuntimeError("engine broke")])


# --- early stopping ---

VALIDATION = Validation(DATA.at(np.arange(2)), lambda output, *_: float(output.mean()))


def test_early_stopping_keeps_the_best_validation_score():
    scores = [0.5, 0.9, 0.7, 0.6, 0.8]
    _, result = run([report()] * 5, validation=VALIDATION, outputs=scores)
    assert result.history.validation_score == scores
    assert result.history.stop_reason == "max_iter"
    assert epoch_kept(result) == 2


def test_early_stopping_is_impatient_about_the_score_not_the_loss():
    falling = [report(1.0 / (i + 1)) for i in range(5)]
    scores = [0.5, 0.5, 0.5, 0.5, 0.5]
    options = spec(tol=0.01, n_iter_no_change=2)
    _, result = run(falling, options, validation=VALIDATION, outputs=scores)
    assert result.history.stop_reason == "tol"
    assert len(result.history) == 4
    assert epoch_kept(result) == 1


def test_a_score_of_nan_is_no_improvement():
    options = spec(n_iter_no_change=1)
    scores = [0.5, math.nan, math.nan]
    _, result = run([report()] * 5, options, validation=VALIDATION, outputs=scores)
    assert result.history.stop_reason == "tol"
    assert epoch_kept(result) == 1


def test_validation_is_scored_on_its_own_samples():
    seen = []
    held_out = DATA.at(np.array([1, 4]))
    validation = Validation(held_out, lambda *scored: seen.append(scored) or 0.0)
    run([report()] * 5, validation=validation, outputs=[7.0] * 5)
    assert len(seen) == 5
    output, target, weight = seen[0]
    np.testing.assert_array_equal(output, [[7.0], [7.0]])
    np.testing.assert_array_equal(target, DATA.target[[1, 4]])
    np.testing.assert_array_equal(weight, DATA.weight[[1, 4]])


def test_data_at_takes_the_same_samples_of_each_and_copies_none():
    data = Data(DATA.x, DATA.x[:, :1], DATA.x[:, 1], np.array([0, 1, 3, 5]))
    part = data.at(np.array([1, 2]))
    (x,) = part.blocks()
    np.testing.assert_array_equal(x, DATA.x[[1, 3]])
    np.testing.assert_array_equal(part.targets(), DATA.x[[1, 3], :1])
    np.testing.assert_array_equal(part.weights(), DATA.x[[1, 3], 1])
    assert len(part) == 2
    assert part.x is data.x


def test_the_order_is_of_the_samples_that_are_meant():
    session = ScriptedSession([report()] * 5)
    data = DATA.at(np.array([1, 2, 4, 5]))
    train(session, data, np.random.default_rng(0), SPEC)
    assert all(sorted(order) == [1, 2, 4, 5] for order, _ in session.orders)
    assert session.loaded[0] is DATA.x


# --- progress ---


def test_verbose_shows_each_number_and_silence_is_the_default(capsys):
    run([report()] * 5)
    assert capsys.readouterr() == ("", "")
    session = ScriptedSession([report(0.25, n_failed=2)] * 5, outputs=[0.5] * 5)
    train(session, DATA, np.random.default_rng(0), SPEC, VALIDATION, verbose=True)
    shown = capsys.readouterr().err
    assert "5.0/5" in shown
    for number in ("loss=0.25", "evaluations=8.0", "residual=1.0e-04", "failed=2", "score=0.5000"):
        assert number in shown
