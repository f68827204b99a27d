# make demo · make test · make check — each sets up what it needs on a fresh machine, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MODULES = $(shell find twin controllers simulators service -name '*.py' ! -name '__main__.py' | sed 's|/__init__.py||; s|\.py$$||; s|/|.|g' | sort)
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt
# one thread a process: two cores are better used by two processes, and bits do not depend on the machine's core count
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export MPLBACKEND ?= Agg

.PHONY: help demo test quick check format docs bench clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

demo: $(VENV)/.core ## one whole batch in closed loop over MQTT, beside the best recipe; writes a report
	@$(BIN)/celltwin demo $(ARGS)

test: $(VENV)/.dev ## the whole test suite
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

quick: $(VENV)/.dev ## the fast tests only
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

check: $(VENV)/.dev ## lint, format, types, import contracts, documentation and examples executed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m pytest -q tests/test_docs.py

format: $(VENV)/.dev ## format and mend what the linter can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(VENV)/.dev ## reference pages from the docstrings, into site/
	@$(BIN)/python -W ignore -m pdoc --math --docformat google --output-directory site $(MODULES)
	@echo "open site/index.html"

bench: $(VENV)/.dev ## benchmarks
	@$(BIN)/python -m pytest -q -o addopts=--import-mode=importlib benchmarks $(ARGS)

clean: ## remove the virtual environment and everything that is generated
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# ------------------------------------------------------------------------------------------------------------ set-up
$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "celltwin: no '$(PYTHON)' on PATH: install Python 3.11 or newer (Debian: apt-get install python3 python3-venv), or say make PYTHON=/path/to/python3"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "celltwin: $(PYTHON) is older than 3.11: say make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "celltwin: $(PYTHON) cannot create a virtual environment: apt-get install python3-venv"; exit 2; }
	@command -v cc >/dev/null || command -v gcc >/dev/null || echo "celltwin: no C compiler found: everything runs, several times slower (Debian: apt-get install gcc)"
	@echo "celltwin: creating $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "celltwin: installing the program and its dependencies (once, about a minute)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "celltwin: installing the program, the donor fit and the development tools (once, a minute or two)"
	@$(PIP) --editable '.[donors,dev]'
	@touch $@ $(VENV)/.core
