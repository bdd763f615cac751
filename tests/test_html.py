"""What a notebook shows for an estimator, a fit's history and equilibria."""

import re

import numpy as np
import pytest
from sklearn.base import clone

from pydeq import DEQRegressor

X = np.linspace(-1, 1, 12).reshape(-1, 1)


@pytest.fixture(scope="module")
def model():
    return DEQRegressor(n_state=4, hidden_layer_sizes=(4,), max_iter=2, random_state=0).fit(X, X)


def rows(page):
    """Return an HTML table's names and values."""
    return dict(re.findall(r"<th[^>]*>(.*?)</th><td[^>]*>(.*?)</td>", page))


def test_estimator_is_scikit_learns_diagram(model):
    fitted, unfitted = model._repr_html_(), clone(model)._repr_html_()
    for page in (fitted, unfitted):
        assert "sk-estimator" in page
        assert "DEQRegressor" in page
        assert "n_state" in page
    assert "<span>Fitted</span>" in fitted
    assert "<span>Not fitted</span>" in unfitted


def test_history_is_a_table(model):
    found = rows(model.history_._repr_html_())
    assert found["epochs"] == "2"
    assert found["ended by"] == "max_iter"
    assert found["failed solves, all epochs"] == "0"
    first, last = model.history_.loss
    assert found["loss"] == f"{first:.4g} \u2192 {last:.4g}"


def test_equilibrium_is_a_table(model):
    found = model.equilibrium(X)
    table = rows(found._repr_html_())
    assert table["samples"] == "12"
    assert table["converged"] == "12 (100.0%)"
    assert table["worst residual"] == f"{found.residual.max():.1e}"
