# Every target makes what it needs: a machine with Python >= 3.11 and make is enough.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
SYNCED := .venv/.synced
DEMO_DIR ?= runs/demo
WORKERS ?= 2

# One thread a worker: on few cores, workers that each start a thread a core slow each other down.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 RAYON_NUM_THREADS=1 \
	TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help setup demo test test-all faults lint audit format bench bench-gpu clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

setup: $(SYNCED)  ## make .venv from uv.lock (installs uv into .uv if there is none)

$(SYNCED): pyproject.toml uv.lock tools/setup.sh
	@sh tools/setup.sh
	@touch $@

demo: $(SYNCED)  ## the whole story on embedded data and an embedded backbone, offline
	$(BIN)/fleetune demo --out $(DEMO_DIR)

test: $(SYNCED)  ## the tests that take seconds
	$(PYTEST)

test-all: $(SYNCED)  ## every test, the slow ones too
	$(PYTEST) -m ""

faults: $(SYNCED)  ## kill, refuse, cut off and damage small runs, each in every way (docs/reliability.md)
	$(PYTEST) -m "" tests/faults

lint: $(SYNCED)  ## ruff, mypy, import layers, rules of the package
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy src tests tools $(wildcard benchmarks/*.py)
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tools.check_package src/fleetune

audit: $(SYNCED)  ## known vulnerabilities and licences of the locked dependencies; needs a network
	$(BIN)/python -m tools.check_licences
	PATH="$$PWD/.uv/bin:$$PATH" uv sync --locked --inexact --quiet --group audit
	$(BIN)/python -m tools.check_vulnerabilities

format: $(SYNCED)  ## sort imports, format, fix what can be fixed safely
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(SYNCED)  ## measure this machine's processor; hours, BENCH="--rounds 1 --share 0.25" for less
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m benchmarks.run w1 w2 w3 w4 w5 $(BENCH)

bench-gpu: $(SYNCED)  ## measure this machine's GPU
	$(BIN)/python -m benchmarks.run w6 w7 w1 $(BENCH)

clean:  ## remove what tools leave behind; .venv and runs stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find src tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
