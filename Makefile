# `make demo` and `make test` each work alone on a machine that has Python 3.11 or newer and nothing else.

PYTHON ?= python3
DOCKER ?= docker
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs image image-cpu clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# Made anew only when the list of dependencies changes. The demo needs the core alone.
.venv/core: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed: .venv/core
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: .venv/core ## learn weights on real digits, about two minutes
	$(BIN)/ssl-weighting demo

# Processes share the cores: threads of their own would only wait for one another.
test: .venv/installed ## all tests
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --durations 40

lint: .venv/installed ## ruff, mypy, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/installed ## the documentation site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

image: ## the container image, for GPUs
	$(DOCKER) build --file docker/Dockerfile --tag ssl-weighting:cuda .

image-cpu: ## the container image, for CPUs alone
	$(DOCKER) build --file docker/Dockerfile --tag ssl-weighting:cpu --build-arg TORCH_BACKEND=cpu .

clean: ## remove the virtual environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache site
