"""Tests marked `julia` need a Julia; no other test depends on whether one is set up here."""

import os
import sys

import pytest

from pydeq import engines
from pydeq.engines.julia import find_julia


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if item.get_closest_marker("julia") is None:
        return
    found = find_julia()
    if found.ready:
        return
    reason = f"needs Julia, but {found.problem}; what to do: {found.advice}"
    if os.environ.get("PYDEQ_REQUIRE_JULIA") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _auto_is_jax(request, monkeypatch):
    if request.node.get_closest_marker("julia") is None:
        monkeypatch.setattr(engines, "_choice", lambda: "jax")


@pytest.fixture(autouse=True, scope="module")
def _no_compiled_code_from_other_modules():
    """One process cannot hold the compiled code of all the tests: Linux bounds its memory maps."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
