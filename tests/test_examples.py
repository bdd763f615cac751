import os
import subprocess
import sys
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


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_runs(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name],
        cwd=tmp_path,
        # The Julia engine has tests of its own, of MNIST a part is enough, and nothing is
        # downloaded: at that proxy nothing listens.
        env={
            **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
            "MPLBACKEND": "Agg",
            "PYTHON_JULIACALL_EXE": "none",
            "PYDEQ_FAST": "1",
            "https_proxy": "http://127.0.0.1:9",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert SAYS[name] in done.stdout
    figures = list((tmp_path / "out").glob("*.png"))
    assert figures
    for path in figures:
        with Image.open(path) as picture:
            picture.verify()
