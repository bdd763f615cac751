import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_python_runs_as_it_stands():
    names = {}
    for block in blocks("python"):
        exec(block, names)
    assert names["accuracy"] > 0.95
    found = names["found"]
    assert found.converged.all()
    assert found.residual.max() <= 1e-3
    np.testing.assert_array_equal(found.n_evals > 0, True)


def test_fit_and_predict_in_ten_lines():
    first = blocks("python")[0].splitlines()
    assert len([line for line in first if line]) <= 10


def test_commands_set_up_and_run():
    job, tests = blocks("bash")
    assert re.fullmatch(
        r"python3 -m venv .venv && .venv/bin/pip install \. && .*demo digits\n", job
    )
    # .ci/run finds the command by its end.
    assert re.fullmatch(r"python3 -m venv .venv && .* -e '.\[test\]' && .*-m pytest\n", tests)


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert targets
    for target in targets:
        assert target.startswith("https://") or (ROOT / target).is_file(), target


def test_a_newcomer_finishes_it():
    lines = README.splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 100 and "https://" not in line] == []


def test_the_first_screen_is_in_order():
    parts = ["Julia", "numpy in", "`pydeq compare`", "no equilibrium", "![", "```bash", "```python"]
    places = [README.index(part) for part in parts]
    assert places == sorted(places)
    assert "Julia" in README.split("\n\n")[1]


def test_the_three_programs_stand_side_by_side():
    table = re.findall(r"^\|.*\|$", README, re.MULTILINE)
    assert len(table) == 2 + 5  # a head, and five rows
    assert re.search(r"JAX.*Julia engine.*plain Julia", table[0])
