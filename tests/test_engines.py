"""What the engines share: an epoch's report of its batches'."""

import numpy as np
import pytest

from pydeq.engines import BatchReport, epoch_report


def batch(**changes):
    values = BatchReport(2.0, 1.0, 3.0, n_evals=40, n_samples=4, worst_residual=0.5, n_failed=0)
    return values._replace(**changes)


def test_an_epoch_is_the_mean_of_its_batches():
    nothing = batch(loss=np.nan, weight=0.0, n_failed=4, worst_residual=np.nan, grad_norm=0.0)
    found = epoch_report([batch(), batch(loss=5.0, weight=3.0, n_evals=80), nothing])
    assert found.loss == (2 * 1 + 5 * 3) / 4
    assert found.grad_norm == 3.0
    assert found.n_evals == pytest.approx(160 / 12)
    assert found.worst_residual == np.inf
    assert found.n_failed == 4
    assert np.isnan(epoch_report([nothing]).loss)
