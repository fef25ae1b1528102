# Both `make demo` and `make test` set everything up by themselves on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= $(shell $(PYTHON) -c "import os; print(max(1, (os.cpu_count() or 2) // 2))")

.PHONY: demo test lint test-fast test-slow soak coverage mutation mutation-again clean

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

# All 4101 mutants of functional/ and methods/ by default. For less, take a random share, SAMPLE=0.25, or name some,
# MUTANTS='bmlr.functional._labels*'. It works in a copy of the sources, in mutants/. A run that was stopped goes on where
# it was, and results stand until the function changes: `make mutation-again` tries once more those that no test has
# failed on, with the tests as they are now.
MUTANTS ?=
SAMPLE ?= 1
SCORE = $(BIN)/python scripts/mutation_score.py --sample $(SAMPLE) $(MUTANTS)
mutation mutation-again: export OMP_NUM_THREADS = 1
mutation: $(VENV)/.installed  ## Share of deliberate errors in functional/ and methods/ that the tests notice; fails below 85 %
	names="$$($(SCORE) --names untried)" || exit; test -z "$$names" || $(BIN)/python -m mutmut run $$names
	$(SCORE)

mutation-again: $(VENV)/.installed  ## The same once more, for the errors not noticed
	names="$$($(SCORE) --names unnoticed)" || exit; test -z "$$names" || $(BIN)/python -m mutmut run $$names
	$(SCORE)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23.2" --constraint constraints.txt
	$(BIN)/python -m pip install --quiet torch --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --editable ".[dev]" --constraint constraints.txt
	touch $@

clean:
	rm -rf $(VENV) demo runs build dist mutants .pytest_cache .mypy_cache .ruff_cache .hypothesis
