PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)

.PHONY: check lint types test format newest oldest

check: lint types test

lint:
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest

format:
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

# The tests with the newest, and with the oldest, packages that pyproject.toml admits, each in an environment of its own.
newest:
	python3 -m venv .venv-newest
	.venv-newest/bin/pip install --upgrade --upgrade-strategy eager -e ".[dev]"
	.venv-newest/bin/python -m pytest

oldest:
	python3 -m venv .venv-oldest
	.venv-oldest/bin/pip install uv
	.venv-oldest/bin/uv pip install --python .venv-oldest/bin/python --resolution lowest-direct -e ".[dev]"
	.venv-oldest/bin/python -m pytest
