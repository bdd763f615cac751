"""The benchmarks load and name only what there is; what they measure is theirs to say."""

import importlib
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pydeq import DEQClassifier

BENCHMARKS = Path(__file__).parent / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py"))


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


@pytest.mark.parametrize("name", SCRIPTS)
def test_loads_and_says_what_it_does(name):
    module = importlib.import_module(name)
    said = CliRunner().invoke(module.main, ["--help"])
    assert said.exit_code == 0, said.output
    assert "Usage:" in said.output
    assert f"python tests/benchmarks/{name}.py" in module.__doc__


def test_the_contestants_have_parameters_that_there_are():
    rows = importlib.import_module("contestants.table").ROWS
    ours = [row for row in rows if row.worker == "pydeq_session"]
    assert len(ours) > 10
    for row in ours:
        settings = {k: v for k, v in row.settings.items() if k not in ("engine", "defaults")}
        DEQClassifier(**settings)


def test_every_contestant_has_a_worker():
    for row in importlib.import_module("contestants.table").ROWS:
        folder = BENCHMARKS if row.worker.endswith(".jl") else BENCHMARKS / "contestants"
        assert (folder / row.worker).with_suffix(Path(row.worker).suffix or ".py").is_file()
