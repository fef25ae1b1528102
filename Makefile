# Both `make demo` and `make test` set everything up by themselves on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= $(shell $(PYTHON) -c "import os; print(max(1, (os.cpu_count() or 2) // 2))")

# Each of two processes takes a half of the files, and some of the other's at the end: what the tests of a file share is
# made once.
TWO := -n 2 --dist worksteal

.PHONY: demo test lint test-slow test-lowest soak coverage mutation mutation-again docs docs-serve notebooks dist clean

demo: $(VENV)/.installed  ## Train joint, Uniform-Baseline and BMLR on the embedded digits; table and figure in demo/
	$(BIN)/python examples/demo.py

test: lint  ## Style, types, all tests but the slow ones
	$(BIN)/python -m pytest $(TWO) -m "not slow"

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test-slow: $(VENV)/.installed  ## The tests of minutes rather than seconds
	$(BIN)/python -m pytest -m slow

# The lower bounds of pyproject.toml, in an environment of their own, with tools as they come. The oldest PyTorch is not on
# every index, nor for every Python: LOWEST_TORCH="torch" takes the newest one, and the bound of PyTorch is then not
# tested. Old libraries warn of what newer ones changed, which is no error of this package.
LOWEST_TORCH ?= torch==2.9.1
LOWEST_TESTS ?= tests
LOWEST := $(VENV)-lowest
test-lowest: $(LOWEST)/.installed  ## All tests but the slow ones, with the oldest dependencies allowed
	$(LOWEST)/bin/python -m pytest $(TWO) -m "not slow and not browser" -W ignore::DeprecationWarning -W ignore::FutureWarning $(LOWEST_TESTS)

$(LOWEST)/.installed: pyproject.toml scripts/lowest_versions.py
	$(PYTHON) -m venv --clear $(LOWEST)
	$(PYTHON) scripts/lowest_versions.py --leave-out torch > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --upgrade "pip>=23.2"
	$(LOWEST)/bin/python -m pip install --quiet "$(LOWEST_TORCH)" --constraint $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --only-binary :all: --constraint $(LOWEST)/lowest.txt --editable ".[train,media,sweep,hf,export,docs,release]" $(LOWEST_TOOLS)
	touch $@
LOWEST_TOOLS := "pytest>=8" "pytest-xdist>=3.6" "hypothesis>=6.100" "types-PyYAML" "selenium>=4.20"

MINUTES ?= 20
soak: $(VENV)/.installed  ## Train, stop and resume for MINUTES; fails unless memory and open files stay flat
	$(BIN)/python scripts/soak.py --minutes $(MINUTES)

coverage: $(VENV)/.installed  ## Lines and branches of all tests but the slow ones; fails below 95 %
	$(BIN)/python -m pytest $(TWO) -m "not slow" --cov --cov-report=term:skip-covered --cov-fail-under=95

# All mutants of functional/ and methods/ by default. For less, take a random share, SAMPLE=0.25, or name some,
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

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/.installed  ## The site in site/, read from the folder without a network; warnings are errors
	$(BIN)/python -m mkdocs build --strict

docs-serve: $(VENV)/.installed  ## The site at http://127.0.0.1:8000, made again at every change
	$(BIN)/python -m mkdocs serve

notebooks: $(VENV)/.installed  ## Run the notebooks of docs/notebooks and keep what they print and draw
	$(BIN)/python scripts/run_notebooks.py

dist: $(VENV)/.installed  ## Wheel and source archive in dist/, checked
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python scripts/check_distribution.py

clean:
	rm -rf $(VENV) $(LOWEST) demo runs build dist site mutants .pytest_cache .mypy_cache .ruff_cache .hypothesis
