"""Every notebook runs from top to bottom on a small job, with no warning but those it shows."""

import re
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib_inline.backend_inline import configure_inline_support
from nbclient import NotebookClient
from traitlets.config import Config

from pydeq.engines.julia import find_julia

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


INLINE = "module://matplotlib_inline.backend_inline"

ALIKE_EVERYWHERE = {
    "PYDEQ_FAST": "1",
    "PYTHON_JULIACALL_EXE": "none",  # the Julia engine has tests of its own
    "https_proxy": "http://127.0.0.1:9",  # where nothing listens: no test downloads MNIST
}


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """IPython in this process, so that no kernel has to load all that a notebook needs."""
    for key, value in ALIKE_EVERYWHERE.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    # What the first call takes for itself; pyplot knows one shell of a process, so it stays.
    for name in ("excepthook", "displayhook", "ps1", "ps2", "ps3"):
        monkeypatch.setattr(sys, name, getattr(sys, name, None), raising=False)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    settings = Config({"HistoryManager": {"enabled": False}})
    shell = InteractiveShell.instance(config=settings, ipython_dir=str(tmp_path))
    shell.reset(new_session=False)
    backend = plt.get_backend()
    plt.switch_backend(INLINE)
    configure_inline_support(shell, INLINE)
    plt.ion()
    yield shell
    plt.close("all")
    plt.ioff()
    plt.switch_backend(backend)


class Cell(NamedTuple):
    """A cell of code that was run, and what a reader sees below it."""

    source: str
    tags: list
    said: str
    errors: str
    warned: list
    n_figures: int


def run(shell, name, n_cells=None):
    """Execute the notebook, or its first cells, and return its cells of code."""
    return [run_cell(shell, cell) for cell in code(read(name))[:n_cells]]


def run_cell(shell, cell):
    # What a test makes an error a notebook shows, once for each cell.
    with warnings.catch_warnings(record=True) as warned, capture_output() as shown:
        warnings.simplefilter("default")
        shell.run_cell(cell.source).raise_error()
    n_figures = sum("image/png" in out.data for out in shown.outputs)
    names = [warning.category.__name__ for warning in warned]
    tags = cell.metadata.get("tags", [])
    return Cell(cell.source, tags, shown.stdout, shown.stderr, names, n_figures)


def check(cells):
    """Hold the outputs to what a reader is to see: figures once each, no stray warning."""
    for cell in cells:
        expected = {"ConvergenceWarning"} if SHOWS_WARNING in cell.tags else set()
        assert set(cell.warned) == expected, cell.source
        assert not re.search("Warning|Error", cell.errors), cell.errors
        draws = re.search(r"plt\.subplots|plot\.", cell.source)
        animates = "animate" in cell.source
        assert cell.n_figures == int(bool(draws) and not animates), cell.source


def test_every_notebook_is_run():
    assert sorted(path.stem for path in EXAMPLES.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_not_kept_in_git(name):
    for cell in code(read(name)):
        assert cell.outputs == []
        assert cell.execution_count is None


@pytest.mark.parametrize("name", NAMES)
def test_runs(name, shell):
    cells = run(shell, name)
    check(cells)
    says = {
        "01_fixed_points": "measured on the way   0.6736",
        "02_double": "prediction for -5: -10.0",
        "03_mnist": "test accuracy: 0.",
        "04_engines": "julia: usable" if find_julia().ready else "julia: not usable",
        "05_stability": "contractive: nothing",
        "06_architectures": "converged: 5 of 5",
    }
    assert says[name] in "".join(cell.said for cell in cells)


def test_without_mnist_it_says_so_and_goes_on(shell, tmp_path, monkeypatch):
    up_to_data = 1 + next(
        i for i, c in enumerate(code(read("03_mnist"))) if "load_mnist(DATA)" in c.source
    )
    monkeypatch.setenv("PYDEQ_DATA", str(tmp_path / "none"))
    cells = run(shell, "03_mnist", up_to_data)
    check(cells)
    assert "Going on with scikit-learn's 8 x 8 digits. MNIST is not complete" in cells[-1].said
    assert "1,000 images to train on" in cells[-1].said


@pytest.mark.julia
def test_engines_with_julia(tmp_path, monkeypatch):
    """In a kernel, as a reader has it."""
    monkeypatch.setenv("PYDEQ_FAST", "1")
    notebook = read("04_engines")
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert "below: jax and julia" in "".join(output.get("text", "") for output in outputs)
