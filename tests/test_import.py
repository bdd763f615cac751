"""What ``import pydeq`` loads, and that each public name is what it says."""

import subprocess
import sys
import textwrap

import pytest

import pydeq


def run(code):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_import_loads_no_engine_and_no_matplotlib():
    heavy = run("""
        import sys
        import pydeq
        pydeq.fixed_point, pydeq.DEQRegressor(), pydeq.DEQClassifier(), pydeq.load
        names = {"jax", "juliacall", "juliapkg", "matplotlib", "diffrax", "tqdm", "torch"}
        print(sorted(names & {name.split(".")[0] for name in sys.modules}))
    """)
    assert heavy == "[]"


def test_import_costs_no_more_than_scikit_learn():
    """What numpy and scikit-learn do not load themselves: `pydeq` and its errors, no more."""
    added = run("""
        import sys
        import numpy, sklearn
        before = set(sys.modules)
        import pydeq
        print(sorted(set(sys.modules) - before))
    """)
    assert added == "['pydeq', 'pydeq.errors']"


@pytest.mark.parametrize("name", pydeq.__all__)
def test_each_public_name_is_there_and_listed(name):
    assert getattr(pydeq, name) is not None
    assert name in dir(pydeq)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'pydeq' has no attribute 'DEQTransformer'"):
        _ = pydeq.DEQTransformer


def test_fixed_point_is_the_function_whatever_was_imported_before():
    found = run("""
        import importlib, sys

        def forget():
            for name in [name for name in sys.modules if name.split(".")[0] == "pydeq"]:
                del sys.modules[name]

        for before in (
            "import pydeq.fixed_points",
            "from pydeq.fixed_points import fixed_point",
            "importlib.import_module('pydeq.fixed_points')",
            "import pydeq; pydeq.DEQRegressor",
        ):
            forget()
            exec(before)
            import pydeq
            print(pydeq.fixed_point.__name__, callable(pydeq.fixed_point))
    """)
    assert found.splitlines() == ["fixed_point True"] * 4


def test_logging_is_left_to_the_user():
    handlers = run("""
        import logging, pydeq.engines
        print(logging.getLogger("pydeq").handlers, logging.getLogger().handlers)
    """)
    assert handlers == "[] []"
