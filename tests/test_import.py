"""What ``import pydeq`` loads, how long it takes, and that each public name is what it says."""

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


def test_import_is_quick():
    """At most 0.5 s beyond numpy and scikit-learn; the best of three, as the machine is shared."""
    code = """
        import time
        import numpy, sklearn
        start = time.perf_counter()
        import pydeq
        print(time.perf_counter() - start)
    """
    assert min(float(run(code)) for _ in range(3)) < 0.5


@pytest.mark.parametrize("name", pydeq.__all__)
def test_each_public_name_is_there_and_listed(name):
    assert getattr(pydeq, name) is not None
    assert name in dir(pydeq)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'pydeq' has no attribute 'DEQTransformer'"):
        _ = pydeq.DEQTransformer


@pytest.mark.parametrize(
    "imports",
    [
        "import pydeq.fixed_points",
        "from pydeq.fixed_points import fixed_point",
        "import importlib; importlib.import_module('pydeq.fixed_points')",
        "import pydeq; pydeq.DEQRegressor",
    ],
)
def test_fixed_point_is_the_function_whatever_was_imported_before(imports):
    code = (
        f"{imports}; import pydeq; print(pydeq.fixed_point.__name__, callable(pydeq.fixed_point))"
    )
    assert run(code) == "fixed_point True"


def test_logging_is_left_to_the_user():
    assert run("import logging, pydeq.engines; print(logging.getLogger('pydeq').handlers)") == "[]"
    assert run("import logging, pydeq.engines; print(logging.getLogger().handlers)") == "[]"
