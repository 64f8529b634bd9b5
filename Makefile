# `make demo` answers a question with the built-in model, `make test` runs the whole suite. Both create .venv if needed.
# pip compiles llama-cpp-python on most machines: this needs a C++ compiler, and takes a few minutes the first time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Which tests `make test` runs, and more options of pytest for it.
SELECTED ?= -m "not slow"
OPTIONS ?=
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

.PHONY: demo test check lint types types-linux types-darwin types-win32 clean

demo: $(VENV)/installed
	$(BIN)/localqwen run demo "How many r's are in strawberry?"

test: $(VENV)/test-installed
	$(PYTEST) $(SELECTED) $(OPTIONS)

# Under a minute: everything but the tests that open real engines, start programs or convert whole models.
check: lint
	$(PYTEST) --quick $(OPTIONS)

lint: $(VENV)/test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory --jobs 3 types

types: types-linux types-darwin types-win32

types-linux types-darwin types-win32: types-%: $(VENV)/test-installed
	$(BIN)/mypy --platform $* --cache-dir .mypy_cache/$*

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Error: localqwen needs Python 3.11 or newer. Try: make PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/test-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable . --group dev
	@touch $@

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache
