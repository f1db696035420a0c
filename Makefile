# Needs GNU make, a POSIX shell, Python 3.11-3.13 and a C++ compiler. `make help` lists the targets.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
RUN_STAMP := $(VENV)/.run
PYTEST_ARGS ?=

# Importing torch without bytecode costs seconds in every process.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run test tests lint docs benchmarks constraints clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' Makefile | expand -t 20

setup: $(STAMP) ## create .venv with the pinned dependencies (PYTHON=... names the interpreter)

$(STAMP): pyproject.toml constraints.txt .ci/setup.sh
	@rm -f $@
	@.ci/setup.sh
	@touch $@ $(RUN_STAMP)

# What `make run` needs is a part of it.
$(RUN_STAMP): pyproject.toml constraints.txt .ci/setup.sh
	@rm -f $@
	@.ci/setup.sh run
	@touch $@

run: $(RUN_STAMP) ## find seed LR and explore fraction of the embedded translation task, a few minutes
	$(BIN)/knee-tune run --task iwslt --preset demo --pruner knee

test: lint tests ## every check: style and types, then tests; with -j2 side by side

tests: setup ## tests only
	$(BIN)/pytest $(PYTEST_ARGS)

lint: setup ## style and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup ## the documentation, into site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

benchmarks: setup ## measure the figures of docs/benchmarks.md again
	$(BIN)/python -m benchmarks

constraints: setup ## pin anew what pyproject.toml asks for; UPGRADE=--upgrade takes newer versions
	.ci/pin.sh $(UPGRADE)

clean: ## remove the environment and every cache, but no study
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
