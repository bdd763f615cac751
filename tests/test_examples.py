"""Every example runs as a script does, says what it found, and draws its figures."""

import pytest
from example_cases import EXAMPLES, run_example

SAYS = {
    "double.py": "prediction for -5: -10.0",
    "digits.py": "converged: 450 of 450 test samples",
    "fixed_point.py": "cos x = x at 0.739085",
    "mnist.py": "test samples",
    "engines.py": "jax: prediction for -5 is -10.0",
    "stability.py": "contractive: 450 of 450 test samples converged",
}

SETTINGS = {
    "MPLBACKEND": "Agg",
    "PYTHON_JULIACALL_EXE": "none",  # the Julia engine has tests of its own
    "PYDEQ_FAST": "1",  # of MNIST a part is enough
    "https_proxy": "http://127.0.0.1:9",  # where nothing listens: nothing is downloaded
}


def test_every_example_is_run():
    of_dask = {"searches.py"}  # run beside the other tests of Dask, on their cluster
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SAYS, *of_dask}


@pytest.mark.usefixtures("close_figures")
@pytest.mark.parametrize("name", SAYS)
def test_runs(name, tmp_path, monkeypatch, capfd):
    for key, value in SETTINGS.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    run_example(name)
    said, errors = capfd.readouterr()
    assert errors == ""
    assert SAYS[name] in said
