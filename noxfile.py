"""What people do here: ``nox -s setup``, ``check``, ``test``, ``bench``, ``api``, ``lowest``.

Each has a virtual environment of its own, kept from one call to the next. What follows ``--`` goes
to the tool: ``nox -s test -- tests/test_cli.py``.
"""

from pathlib import Path

import nox

nox.options.sessions = ["check", "test"]
nox.options.reuse_venv = "yes"


@nox.session(venv_backend="none")
def setup(session: nox.Session) -> None:
    """Make .venv with what tests and checks need, and install the git hooks."""
    python = str(Path(".venv", "bin", "python"))
    session.run("python3", "-m", "venv", ".venv", external=True)
    session.run(python, "-m", "pip", "install", "--quiet", "-e", ".[dev]", external=True)
    session.run(python, "-m", "pre_commit", "install", external=True)


@nox.session
def check(session: nox.Session) -> None:
    """Look at format, style, types and spelling."""
    session.install("-e", ".[dev]")
    session.run("ruff", "format", "--check")
    session.run("ruff", "check")
    session.run("pyright", "--pythonpath", str(Path(session.bin, "python")))
    session.run("codespell")


@nox.session
def test(session: nox.Session) -> None:
    """Run the tests."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure how good the answers are: all parts, or those named."""
    session.install("-e", ".[test]")
    session.run("python", "tests/benchmarks/quality.py", *session.posargs)


@nox.session
def api(session: nox.Session) -> None:
    """Write the API pages from the docstrings."""
    session.install("-e", ".[test]")
    session.run("python", "tests/api_reference.py")
    session.run("python", "tests/architecture.py")


@nox.session
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest versions that pyproject.toml allows."""
    session.install("uv")
    session.run("uv", "pip", "install", "--resolution", "lowest-direct", "-e", ".[test]")
    # equinox uses names of jax.core that this release of jax already calls deprecated.
    session.run("pytest", "-W", "ignore:jax.core:DeprecationWarning", *session.posargs)
