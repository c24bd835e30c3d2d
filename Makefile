# `make demo` and `make test` are all that a newcomer needs; each sets up .venv by itself, once.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
# sam2 is published as source only; its CUDA extension is a post-processing step that memorysam does not use.
export SAM2_BUILD_CUDA := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test soak docs lint check format clean distclean
help:
	@echo 'make demo    prepare, train, evaluate and predict on rendered scenes (minutes, CPU)'
	@echo 'make test    the tests (MEMORYSAM_SLOW=1: the slow ones too)'
	@echo 'make soak    the fault suite at night: 2,000 kills, 50,000 examples, fuzzing; hours'
	@echo 'make docs    the documentation as a site that opens from disk: site/index.html'
	@echo 'make lint    ruff (format, lint) and mypy'
	@echo 'make check   lint and test'
	@echo 'make format  let ruff fix what it can'
	@echo 'make clean   remove what the above made; distclean: .venv too'

# sam2 needs torch to build itself. Without build isolation it takes the one just installed, instead of downloading
# a second one into a temporary environment; so the build tools are installed first, too.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "memorysam needs Python 3.11 or newer, \
	and '$(PYTHON)' is $$($(PYTHON) --version 2>&1); name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools wheel hatchling editables torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e .
	@touch $@

# All extras and the tools of development: 4.1 GB, where the program alone is 1.5.
$(DEV): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/memorysam demo --out .demo

# One thread a worker: two workers on two cores, and sums that do not depend on the machine. Each takes half of the files,
# so that what a file's tests share is made once; who is done first takes over half of what the other still has.
WORKERS := -n 2 --dist worksteal
test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) $(PYTEST_ARGS)

# What the fault suite tries and loses goes to a file, too.
soak: $(DEV)
	MEMORYSAM_SOAK=1 MEMORYSAM_FAULT_FIGURES=soak.json OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) tests/faults $(PYTEST_ARGS)

docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .demo site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
