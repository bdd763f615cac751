"""Every example runs as a script does, says what it found, and draws its figures."""

import runpy
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

SAYS = {
    "double.py": "prediction for -5: -10.0",
    "digits.py": "converged: 450 of 450 test samples",
    "fixed_point.py": "cos x = x at 0.739085",
    "mnist.py": "test samples",
    "engines.py": "jax: prediction for -5 is -10.0",
    "searches.py": "best learning rate: 0.01",
    "stability.py": "contractive: 450 of 450 test samples converged",
}

SETTINGS = {
    "MPLBACKEND": "Agg",
    "PYTHON_JULIACALL_EXE": "none",  # the Julia engine has tests of its own
    "PYDEQ_FAST": "1",  # of MNIST a part is enough
    "https_proxy": "http://127.0.0.1:9",  # where nothing listens: nothing is downloaded
}


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.usefixtures("close_figures")
@pytest.mark.parametrize("name", SAYS)
def test_runs(name, tmp_path, monkeypatch, capfd):
    for key, value in SETTINGS.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    said, errors = capfd.readouterr()
    assert errors == ""
    assert SAYS[name] in said
    figures = list((tmp_path / "out").glob("*.png"))
    assert figures
    for path in figures:
        with Image.open(path) as picture:
            picture.verify()
