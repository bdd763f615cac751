"""Write examples/guides/architecture.md, a sentence for every file, from the files' first lines.

python tests/architecture.py
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "examples" / "guides" / "architecture.md"
WIDTH = 100

INTRODUCTION = """\
# Architecture

`X` in `predict` takes one way down and back: estimator, engine, session, search. This page has one
sentence for every file on that way and beside it. `nox -s api` makes it from the first lines of the
files. [CONTRIBUTING.md](../../CONTRIBUTING.md) says where to change what.
"""

# In this order, a folder imports only from those that stand above it; then the Julia project.
FOLDERS = [
    "pydeq",
    "pydeq/layers",
    "pydeq/model",
    "pydeq/engines",
    "pydeq/engines/jax",
    "pydeq/engines/jax/solvers",
    "pydeq/engines/julia",
    "pydeq/training",
    "pydeq/estimators",
    "pydeq/plot",
    "pydeq/compare",
    "pydeq/cli",
    "julia/src",
    "julia/src/solvers",
    "julia/ext",
    "julia/ext/PyDEQSteadyStateExt",
    "julia/calls/PyDEQCalls/src",
    "julia/original",
]


def render() -> str:
    """Return the whole page."""
    lines = [INTRODUCTION]
    for folder in FOLDERS:
        lines += [f"## {folder}", "", *entries(ROOT / folder), ""]
    return "\n".join(lines).rstrip() + "\n"


def entries(folder: Path) -> Iterator[str]:
    """Yield the lines of a folder's files, the package's own sentence first."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.name != "__init__.py", path.name)):
        if path.suffix in (".py", ".jl"):
            name = path.name
            line = f"- `{name}`: {sentence(path)}"
            yield from textwrap.wrap(
                line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )


def sentence(path: Path) -> str:
    """Return the first sentence of what a file says of itself."""
    text = path.read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(text)) if path.suffix == ".py" else julia_head(text)
    if not said:
        raise ValueError(f"{path} does not say in its first lines what it is")
    # A sentence ends with a full stop, but for that of an initial, or with its paragraph.
    ends = r"(?<=[.])(?<!\b[A-Z]\.)\s+(?=[A-Z`\"])|\n\s*\n"
    return re.split(ends, said.strip())[0].replace("\n", " ")


def julia_head(text: str) -> str:
    """Return a Julia file's docstring or comment, where it starts with one."""
    if docstring := re.match(r'"""\s*(.*?)"""', text, re.DOTALL):
        return docstring[1]
    comment = re.match(r"(?:#.*\n)*", text)[0]
    return re.sub(r"^# ?", "", comment, flags=re.MULTILINE)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(PAGE)
