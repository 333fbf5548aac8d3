# What a person types: demo, test, check, bench. Everything needed is installed into .venv first.
#
#   make demo            install and ask the built-in model a question
#   make test            install and run the test suite
#   make check           what CI runs: lint, types, tests
#   TORCH=torch make …   another torch than the pinned one (a CUDA build, say)

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin

.PHONY: demo test check lint types format clean

demo: $(VENV)/.app
	$(BIN)/erniechat -p "What is 17 + 25?"

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto

check: lint types test

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# torch comes first and alone: where the registry offers several builds, this line decides.
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; try PYTHON=python3.12 make")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	touch $@

$(VENV)/.app: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.app pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@
