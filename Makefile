# What people do here. A Makefile, because make is there already wherever one develops.

python := .venv/bin/python
only := tests
parts :=
lowest := .venv-lowest

.PHONY: setup check test bench api lowest

setup: ## An environment in .venv with what tests and checks need, and the git hooks.
	python3 -m venv .venv
	$(python) -m pip install --quiet -e '.[dev]'
	$(python) -m pre_commit install

check: ## Format, style, types, spelling.
	$(python) -m ruff format --check
	$(python) -m ruff check
	$(python) -m pyright --pythonpath $(python)
	$(python) -m codespell_lib

test: ## All tests, or those that only=... names.
	$(python) -m pytest $(only)

bench: ## How good the answers are: all parts, or those that parts='...' names.
	$(python) tests/benchmarks/quality.py $(parts)

api: ## The API pages, from the docstrings.
	$(python) tests/api_reference.py
	$(python) tests/architecture.py

lowest: ## The tests with the lowest versions that pyproject.toml allows.
	python3 -m venv $(lowest)
	$(lowest)/bin/python -m pip install --quiet uv
	$(lowest)/bin/python -m uv pip install --quiet --python $(lowest)/bin/python \
		--resolution lowest-direct -e '.[test]'
	$(lowest)/bin/python -m pytest $(only)
