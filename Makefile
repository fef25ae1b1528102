# Both `make demo` and `make test` set everything up by themselves on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= $(shell $(PYTHON) -c "import os; print(max(1, (os.cpu_count() or 2) // 2))")

.PHONY: demo test lint test-fast test-slow clean

demo: $(VENV)/.installed  ## Train joint, Uniform-Baseline and BMLR on the embedded digits; table and figure in demo/
	$(BIN)/python examples/demo.py

test: lint  ## Style, types, all tests but the slow ones
	$(BIN)/python -m pytest -n 2 -m "not slow"

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test-slow: $(VENV)/.installed  ## The tests of minutes rather than seconds
	$(BIN)/python -m pytest -m slow

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23.2" --constraint constraints.txt
	$(BIN)/python -m pip install --quiet torch --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --editable ".[dev]" --constraint constraints.txt
	touch $@

clean:
	rm -rf $(VENV) demo runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
