"""What the repository says of itself in more than one place agrees."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pydeq

ROOT = Path(__file__).resolve().parents[1]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_the_same_everywhere():
    stated = {
        "pyproject.toml": tomllib.loads(read("pyproject.toml"))["project"]["version"],
        "julia/Project.toml": tomllib.loads(read("julia/Project.toml"))["version"],
        "CITATION.cff": re.search("^version: (.*)$", read("CITATION.cff"), re.MULTILINE)[1],
    }
    assert stated == dict.fromkeys(stated, pydeq.__version__)


def test_the_julia_project_has_the_license():
    assert read("julia/LICENSE") == read("LICENSE")


def test_the_map_leads_to_files_that_hold_what_it_says():
    text = read("CONTRIBUTING.md").replace("\n", " ")
    paths = re.findall(r"`((?:pydeq|julia|tests|examples)/[\w/.]+)`", text)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
    places = re.findall(r"`(\w+)`(?: and `(\w+)`)? in `([^`]+/[^`]+)`", text)
    assert len(places) >= 5
    for *names, path in places:
        for name in filter(None, names):
            assert re.search(rf"\b{name}\b", read(path)), f"{path} has no {name}"


def test_tools_have_one_version():
    pinned = re.findall(r"\[(\w+==[\w.]+)\]", read(".pre-commit-config.yaml"))
    assert pinned
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    assert set(pinned) <= {*extras["test"], *extras["dev"]}


def test_what_is_imported_is_installed_with_pydeq():
    declared = tomllib.loads(read("pyproject.toml"))["project"]["dependencies"]
    names = {re.match(r"[\w-]+", line)[0] for line in declared}
    found = set()
    for path in (ROOT / "pydeq").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    # juliacall brings juliapkg; without torchvision MNIST comes in another way.
    others = found - sys.stdlib_module_names - {"pydeq", "juliapkg", "torchvision"}
    assert {name.replace("sklearn", "scikit-learn") for name in others} <= names


def test_nothing_is_left_at_the_top_level():
    """What belongs there, and what commands of the README and of Python's tools may have made."""
    ours = {"pyproject.toml", "README.md", "pydeq", "julia", "tests", "examples"}
    also = {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "noxfile.py"}
    made = {"build", "data", "dist", "out", "__pycache__", "pydeq.egg-info"}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert ours | also <= found <= ours | also | made
