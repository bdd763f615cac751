"""Every notebook runs from top to bottom on a small job, with no warning but those it shows."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NAMES = [
    "01_fixed_points",
    "02_double",
    "03_mnist",
    "04_engines",
    "05_stability",
    "06_architectures",
]

SHOWS_WARNING = "shows-warning"
"""Tag of a cell whose warning is part of what it shows."""


def read(name):
    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


TRAIN_FOR_LONG = ("03_mnist", "05_stability")

ALIKE_EVERYWHERE = {
    "PYDEQ_FAST": "1",
    "PYTHON_JULIACALL_EXE": "none",  # the Julia engine has tests of its own
    "https_proxy": "http://127.0.0.1:9",  # where nothing listens: no test downloads MNIST
}


def run(name, folder, monkeypatch, n_cells=None, **env):
    """Execute the notebook, or its first cells, in an empty folder; return it with its outputs."""
    for key, value in {**ALIKE_EVERYWHERE, **env}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures are drawn into the notebook
    if name in TRAIN_FOR_LONG:
        monkeypatch.delenv("XLA_FLAGS")  # of the tests, which spare the compiler
    notebook = read(name)
    notebook.cells = notebook.cells[:n_cells]
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    return notebook


def text(cell, stream="stdout"):
    return "".join(out.text for out in cell.outputs if out.get("name") == stream)


def figures(cell):
    return [out for out in cell.outputs if "image/png" in out.get("data", {})]


def check(notebook):
    """Hold the outputs to what a reader is to see: figures once each, no stray warning."""
    for cell in code(notebook):
        said = text(cell, "stderr")
        if SHOWS_WARNING in cell.metadata.get("tags", []):
            assert "ConvergenceWarning" in said, cell.source
        else:
            assert not re.search("Warning|Error", said), said
        draws = re.search(r"plt\.subplots|plot\.", cell.source)
        animates = "animate" in cell.source
        assert len(figures(cell)) == int(bool(draws) and not animates), cell.source


def test_every_notebook_is_run():
    assert sorted(path.stem for path in EXAMPLES.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_not_kept_in_git(name):
    for cell in code(read(name)):
        assert cell.outputs == []
        assert cell.execution_count is None


@pytest.mark.parametrize("name", NAMES)
def test_runs(name, tmp_path, monkeypatch):
    notebook = run(name, tmp_path, monkeypatch)
    check(notebook)
    output = "".join(text(cell) for cell in code(notebook))
    says = {
        "01_fixed_points": "measured on the way   0.6736",
        "02_double": "prediction for -5: -10.0",
        "03_mnist": "test accuracy: 0.",
        "04_engines": "julia: not usable",
        "05_stability": "contractive: nothing",
        "06_architectures": "converged: 5 of 5",
    }
    assert says[name] in output


def test_without_mnist_it_says_so_and_goes_on(tmp_path, monkeypatch):
    up_to_data = 1 + next(
        i for i, c in enumerate(read("03_mnist").cells) if "load_mnist(DATA)" in c.source
    )
    none = str(tmp_path / "none")
    notebook = run("03_mnist", tmp_path, monkeypatch, up_to_data, PYDEQ_DATA=none)
    check(notebook)
    said = text(code(notebook)[-1])
    assert "Going on with scikit-learn's 8 x 8 digits. MNIST is not complete" in said
    assert "1,000 images to train on" in said


@pytest.mark.julia
def test_engines_with_julia(tmp_path, monkeypatch):
    monkeypatch.setenv("PYDEQ_FAST", "1")
    notebook = read("04_engines")
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=resources).execute()
    assert "below: jax and julia" in "".join(text(cell) for cell in code(notebook))
