SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup run test test-all lint type proto bench bench-claims trace-ui clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Named after the content of pyproject.toml: nothing is installed again until it changes.
STAMP := $(VENV)/.setup-$(shell cksum < pyproject.toml | cut -d ' ' -f 1)

help: ## show these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install everything, when pyproject.toml has changed

$(STAMP):
	@$(PYTHON) scripts/preflight.py --venv $(VENV)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[all,dev]'
	@$(BIN)/millrace kernels
	@rm -f $(VENV)/.setup-* && touch $@

run: setup ## start the whole stack here until Ctrl-C; ARGS="--workers 2" passes flags
	@exec $(BIN)/millrace up $(ARGS)

test: setup ## run the tests; ARGS="-k name" passes flags
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: setup ## run all tests, the slow ones too
	$(BIN)/python -m pytest $(ARGS)

lint: setup ## check style, format and protos
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/buf lint protos
	@test ! -f protos/baseline.binpb || $(BIN)/buf breaking protos --against protos/baseline.binpb

type: setup ## check types
	$(BIN)/mypy

proto: setup ## generate the committed stubs again
	PYTHON=$(BIN)/python scripts/protos.sh

bench: setup ## measure kernels, engine and a stack, about five minutes; ARGS="--only engine"
	$(BIN)/python -m scripts.bench $(ARGS)

bench-claims: setup ## measure what is claimed of batching and int8, about eight minutes
	$(BIN)/python -m scripts.bench.claims $(ARGS)

trace-ui: setup ## start a tracing UI beside the stack
	@exec $(BIN)/millrace trace-ui $(ARGS)

clean: ## remove .venv and everything generated; models stay (see `millrace uninstall`)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist bench-results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
