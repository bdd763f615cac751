"""Docstrings' examples run, the public names have one, and the API reference is made of them."""

import doctest
import inspect
import sys
from importlib import import_module

import api_reference
import architecture
import matplotlib
import pytest

matplotlib.use("Agg")

ROOT = architecture.ROOT / "pydeq"
# Every module that has one.
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(ROOT.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
NAMES = [name for names in api_reference.CONTENTS.values() for name in names]
# What is said of a class or function beside it holds for these too; MNIST is not everywhere.
WITHOUT_EXAMPLE = {
    "pydeq.datasets.load_mnist",
    "pydeq.Certificates",
    "pydeq.FixedPoint",
    "pydeq.EpochRecord",
}


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import_module(module)
    result = doctest.testmod(sys.modules[module], optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_public_names_have_an_example(name):
    value = api_reference.find(name)
    text = inspect.getdoc(value)
    assert text
    is_method = name.count(".") == 2 and "DEQ" in name
    is_error = isinstance(value, type) and issubclass(value, BaseException)
    if not (is_method or is_error or name in WITHOUT_EXAMPLE):
        assert ">>> " in text


@pytest.mark.parametrize("module", ["", "layers", "plot", "presets", "datasets"])
def test_the_reference_has_every_public_name(module):
    home = import_module(f"pydeq.{module}".rstrip("."))
    names = {f"{home.__name__}.{name}" for name in home.__all__}
    values = {name for name in names if not inspect.ismodule(api_reference.find(name))}
    assert values - {"pydeq.__version__"} <= set(NAMES)


def test_the_reference_is_up_to_date(caplog):
    assert api_reference.PAGE.read_text(encoding="utf-8") == api_reference.render(), (
        "run nox -s api"
    )


def test_the_architecture_page_is_up_to_date():
    assert architecture.PAGE.read_text(encoding="utf-8") == architecture.render(), "run nox -s api"


def test_the_architecture_page_has_every_folder():
    python = {path.parent.relative_to(architecture.ROOT) for path in ROOT.rglob("*.py")}
    assert {str(path) for path in python} <= set(architecture.FOLDERS)
