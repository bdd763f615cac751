"""What the repository says of itself in more than one place agrees."""

import re
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
