PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)

.PHONY: check lint types test format peer-tests newest oldest

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

# The tests that transformers runs on all of its own models, from the source distribution of the installed version.
peer-tests:
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	version=$$($(PYTHON) -c 'import transformers; print(transformers.__version__)') && \
	$(PYTHON) -m pip download -q --no-deps --no-binary :all: -d "$$folder" "transformers==$$version" && \
	tar xzf "$$folder"/transformers-*.tar.gz -C "$$folder" --strip-components 1 && \
	TRANSFORMERS_SOURCE="$$folder" $(PYTHON) -m pytest -o addopts=--import-mode=importlib -qrs -W ignore tests/transformers_common.py

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
