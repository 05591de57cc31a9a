PYTHON ?= python3
BIN := .venv/bin
# Data for the tests that need a prepared set; they are skipped where it is not there.
export CLUSTERLAB_DATA ?= $(wildcard $(abspath ../shared/data))

.DEFAULT_GOAL := help
.PHONY: help setup run test test-fast test-slurm lint format type benchmark readme clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: .venv/.done  ## make .venv with everything pinned in constraints.txt

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: setup  ## train DCEC on the bundled digits and show the result
	OMP_NUM_THREADS=1 $(BIN)/python train.py

lint: setup  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: setup  ## mypy, strict
	$(BIN)/mypy

test: lint type  ## lint, types and the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2

test-fast: setup  ## the tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 -m 'not slow and not distributed'

test-slurm: setup  ## a sweep through a real Slurm, started here: needs root, slurm-wlm and munge
	OMP_NUM_THREADS=1 $(BIN)/python tests/slurm.py

benchmark: setup  ## speed of the training loop against bare PyTorch, on one thread
	OMP_NUM_THREADS=1 $(BIN)/python scripts/benchmark.py

readme: setup  ## write the tables of README and docs from results/
	$(BIN)/python scripts/readme.py

clean:  ## remove the environment and caches; runs/ stays
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
