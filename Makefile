SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# The clients of ASAP::O, which only tests run.
CLIENTS := build/asapo-clients
ROOMS := asapo producer receiver broker worker_sdk tests benchmarks examples
CODE = $(wildcard $(ROOMS))
# Options for pytest, e.g. make test ARGS="tests/unit -k wire"
ARGS ?=
# Benchmark ids, e.g. make bench ONLY=path,trains
ONLY ?=
export ONLY PYTHON
# Tests start hundreds of processes: compiling our modules anew in each would be a third of their start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help .venv demo test bench lint format soak lock clean

help: ## Show this list
	@sed -n 's/^\([a-z.]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 10

.venv: $(VENV)/.complete ## Create the virtual environment from the lock, or bring it up to date

$(VENV)/.complete: pyproject.toml requirements/dev.txt scripts/make-venv.sh
	@scripts/make-venv.sh $(VENV) requirements/dev.txt

demo: .venv ## Run the whole path on this machine and print the ledger
	$(BIN)/python examples/demo.py

# Where their wheels cannot be installed, the tests that need them are skipped by name.
$(CLIENTS)/.complete: requirements/asapo-clients.txt scripts/make-venv.sh
	@PYTHON=python3.11 scripts/make-venv.sh $(CLIENTS) requirements/asapo-clients.txt --clients || \
		echo "note: without the clients of ASAP::O their tests are skipped (needs_asapo_clients)" >&2

test: .venv $(CLIENTS)/.complete ## Run the test suite (all but the soak tier)
	$(BIN)/python -m pytest $(ARGS)

bench: .venv ## Measure; ONLY=path,trains selects
	$(BIN)/python -m benchmarks $(ONLY)

soak: .venv ## Run the soak tier; ASAPO_SOAK_SHARE=0.05 runs a share of it; log in build/soak.log
	@mkdir -p build
	$(BIN)/python -m pytest -m soak -v --durations=0 $(ARGS) 2>&1 | tee build/soak.log

lint: .venv ## Check format, style, types and import contracts
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports --no-cache

format: .venv ## Format the code and apply safe fixes
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

EXTRAS := server codecs hdf5 replay tui bench
COMPILE = build/lock-venv/bin/uv pip compile --quiet --universal --generate-hashes --no-header --upgrade
CLIENTS_ARE_FOR = --python-version 3.11 --python-platform x86_64-manylinux_2_28

lock: ## Resolve the dependencies anew and write requirements/*.txt
	@scripts/make-venv.sh build/lock-venv requirements/lock.txt --tools-only
	$(COMPILE) pyproject.toml --group dev $(EXTRAS:%=--extra %) --output-file requirements/dev.txt
	$(COMPILE) --group lock --output-file requirements/lock.txt
	$(subst --universal,$(CLIENTS_ARE_FOR),$(COMPILE)) --group asapo-clients --output-file requirements/asapo-clients.txt

clean: ## Remove what make and the tools have written
	rm -rf $(VENV) build dist .benchmarks .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
