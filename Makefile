# Everything a newcomer runs. Each target does its own set-up; only Python 3.11, pip, make and git are needed.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes
EDITABLE := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-build-isolation --no-deps \
	-e . -e packaging/development
BENCH ?= ingest vault
PACKAGING := pyproject.toml $(wildcard packaging/*/pyproject.toml)

.PHONY: help demo up test lint format docs protos lock bench clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

$(VENV)/runtime: locks/build.txt locks/runtime.txt $(PACKAGING)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pli needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -r locks/build.txt -r locks/runtime.txt
	$(EDITABLE)
	@touch $@

$(VENV)/dev: $(VENV)/runtime locks/dev.txt
	$(PIP) -r locks/dev.txt
	@touch $@

demo: $(VENV)/runtime ## a whole campaign on this machine, in a minute
	$(BIN)/pli demo $(DEMO)

up: $(VENV)/runtime ## the same services, kept running; state in pli-state/
	$(BIN)/pli up --dir pli-state $(UP)

test: $(VENV)/dev ## every test
	$(BIN)/python -m pytest -n auto --dist loadfile $(TEST)

lint: $(VENV)/dev ## ruff, mypy, import contracts, protos and stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	protos/generate.sh --check
	$(BIN)/python docs/configuration.py --check

format: $(VENV)/dev ## writes what `lint` checks of form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write

docs: $(VENV)/dev ## the pages that are written from the code
	$(BIN)/python docs/configuration.py

protos: $(VENV)/dev ## the generated stubs, anew
	protos/generate.sh

lock: ## the lock files, anew (network)
	test -x .uv/bin/uv || { $(PYTHON) -m venv .uv && .uv/bin/pip install --quiet uv; }
	locks/lock.sh

bench: $(VENV)/runtime ## the benchmarks (BENCH=ingest or BENCH=vault for one of them)
	set -e; for part in $(BENCH); do $(BIN)/pli bench $$part; done

clean: ## forgets installations and caches
	rm -rf $(VENV) .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
