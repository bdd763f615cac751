"""The guides' Python runs, and every link in them leads somewhere."""

import re
from pathlib import Path

import numpy as np
import pytest

from pydeq import DEQClassifier, DEQRegressor

ROOT = Path(__file__).resolve().parents[1]
GUIDES = ROOT / "examples" / "guides"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(GUIDES.glob("*.md"))]


def run(name):
    """Run a guide's Python blocks, one after the other, and return their names."""
    text = (GUIDES / name).read_text(encoding="utf-8")
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(block, names)
    return names


def test_coming_from_julia():
    names = run("coming_from_julia.md")
    assert abs(names["prediction"][0] + 10) < 0.2
    assert names["path"].shape == (101, 10, 1)


def test_coming_from_mlp():
    names = run("coming_from_mlp.md")
    assert min(names["scores"].values()) > 0.9
    assert names["found"].converged.all()


def test_convergence():
    names = run("convergence.md")
    assert names["message"].startswith(
        "1 of 1 samples did not reach an equilibrium within max_steps=2"
    )
    assert len(names["history"]) == 1000
    unscaled, exact, y = names["found"], names["exact"], names["y"]
    assert unscaled.converged.all()
    assert np.abs(unscaled.output - exact.output).max() > 2 * y.std()
    assert names["scaled"].score(names["X"], y) > 0.99


def test_layers():
    names = run("layers.md")
    assert names["found"].converged.all()
    assert names["found"].state.shape == (len(names["X_test"]), 256)
    text = " ".join((GUIDES / "layers.md").read_text("utf-8").split())
    quoted = re.search(r'The message says: "(.*?)"', text)
    assert quoted
    assert quoted[1] in names["message"]


def test_every_guide_with_python_is_run():
    with_python = {p.name for p in GUIDES.glob("*.md") if "```python" in p.read_text("utf-8")}
    # The reference's signatures are Python, and its examples are run with the docstrings.
    tried = {"coming_from_julia.md", "coming_from_mlp.md", "convergence.md", "layers.md"}
    assert with_python == {*tried, "api.md"}


def test_the_troubles_quote_messages_that_pydeq_gives():
    engines = (ROOT / "pydeq" / "engines").rglob("*.py")
    source = "".join(re.sub(r'"\s*f?"', "", path.read_text("utf-8")) for path in engines)
    text = (GUIDES / "julia_setup.md").read_text("utf-8")
    quotes = re.findall(r'^\| "(.*?)" \|', text, re.MULTILINE)
    assert len(quotes) > 5
    for quote in quotes:
        for part in filter(None, re.split(r"\s*\.\.\.,?\s*", quote)):
            assert part in source, part


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("https://"):
            path, _, heading = target.partition("#")
            there = page.parent / path if path else page
            assert there.exists(), target
            if heading:
                headings = re.findall("^#+ (.*)$", there.read_text("utf-8"), re.M)
                assert heading in {h.lower().replace(" ", "-") for h in headings}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_is_wider_than_the_code(page):
    lines = page.read_text("utf-8").splitlines()
    assert [line for line in lines if len(line) > 100 and "https://" not in line] == []


def test_every_guide_is_linked_from_the_list_of_guides():
    contents = (GUIDES / "README.md").read_text("utf-8")
    for page in GUIDES.glob("*.md"):
        if page.name != "README.md":
            assert f"]({page.name})" in contents


def test_the_table_of_parameters_has_the_defaults():
    text = (GUIDES / "coming_from_mlp.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.*?) \| (`.*?) \| .* \|$", text, re.MULTILINE)
    assert len(rows) > 5
    for names, values in rows:
        for name, value in zip(
            re.findall("`(.*?)`", names), re.findall("`(.*?)`", values), strict=True
        ):
            for kind in (DEQClassifier, DEQRegressor):
                assert kind().get_params()[name] == eval(value), name
