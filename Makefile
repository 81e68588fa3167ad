SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup run test test-all lint type proto bench bench-claims trace-ui clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Named after the content of pyproject.toml: nothing is installed again until it changes.
SUM := $(shell cksum < pyproject.toml | cut -d ' ' -f 1)
# What running needs, and what tests, checks and benchmarks need as well.
RUN_STAMP := $(VENV)/.installed-run-$(SUM)
DEV_STAMP := $(VENV)/.installed-dev-$(SUM)
# TORCH=cpu takes torch's CPU build, from PyTorch's own index; on Linux x86_64 plain pip takes the
# CUDA build, which is gigabytes larger.
TORCH ?=
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
ifneq ($(filter-out cpu,$(TORCH)),)
$(error TORCH=$(TORCH) is unknown: TORCH=cpu, or nothing for what pip chooses)
endif

help: ## show these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(DEV_STAMP) ## make .venv and install everything, when pyproject.toml has changed

$(RUN_STAMP): EXTRAS := all
$(DEV_STAMP): EXTRAS := all,dev
$(RUN_STAMP) $(DEV_STAMP):
	@$(PYTHON) scripts/preflight.py --venv $(VENV) --torch "$(TORCH)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python scripts/install.py $(EXTRAS) $(if $(TORCH),--extra-index-url $(TORCH_CPU_INDEX))
	@$(BIN)/millrace kernels
	@rm -f $(VENV)/.installed-* && touch $@ $(RUN_STAMP)

run: $(RUN_STAMP) ## start the whole stack here until Ctrl-C; ARGS="--workers 2" passes flags
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

trace-ui: $(RUN_STAMP) ## start a tracing UI beside the stack
	@exec $(BIN)/millrace trace-ui $(ARGS)

clean: ## remove .venv and everything generated; models stay (see `millrace uninstall`)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist bench-results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
