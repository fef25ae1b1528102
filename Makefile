# Both `make demo` and `make test` set everything up by themselves on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= $(shell $(PYTHON) -c "import os; print(max(1, (os.cpu_count() or 2) // 2))")

.PHONY: demo test lint test-fast test-slow soak coverage mutation clean

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

MINUTES ?= 20
soak: $(VENV)/.installed  ## Train, stop and resume for MINUTES; fails unless memory and open files stay flat
	$(BIN)/python scripts/soak.py --minutes $(MINUTES)

coverage: $(VENV)/.installed  ## Lines and branches of all tests but the slow ones; fails below 95 %
	$(BIN)/python -m pytest -n 2 -m "not slow" --cov --cov-report=term:skip-covered --cov-fail-under=95

# All of functional/ and methods/ by default, which takes hours: name less, as in MUTANTS='bmlr.functional._labels*'.
# A run that was stopped goes on where it was; it works in a copy of the sources, in mutants/.
MUTANTS ?=
mutation: $(VENV)/.installed  ## Share of deliberate errors in functional/ and methods/ that the tests notice; fails below 85 %
	$(BIN)/python -m mutmut run $(MUTANTS)
	$(BIN)/python scripts/mutation_score.py $(MUTANTS)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23.2" --constraint constraints.txt
	$(BIN)/python -m pip install --quiet torch --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --editable ".[dev]" --constraint constraints.txt
	touch $@

clean:
	rm -rf $(VENV) demo runs build dist mutants .pytest_cache .mypy_cache .ruff_cache .hypothesis
