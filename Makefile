# Environments live in .venv (development) and .venv-demo (what a user installs); both are disposable.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := .venv-demo
PIP_INSTALL := -m pip install --quiet --constraint constraints.txt
export OMP_NUM_THREADS ?= 2

POLICY ?= examples/pair/policy
REFERENCE ?= examples/pair/reference
PRECISION ?= int8
OUT ?= out/pair

.DEFAULT_GOAL := help
.PHONY: help setup demo test quick-test lint types ci export bench-memory bench-fidelity bench-products example clean

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/.done ## the development environment: torch, transformers, test tools

demo: $(DEMO)/.done ## export the bundled pair, score its test problems, show the wrong steps (no torch)
	$(DEMO)/bin/python examples/demo.py

test: $(VENV)/.done ## all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

quick-test: $(VENV)/.done ## the tests that need no PyTorch
	$(BIN)/python -m pytest -n 2 --dist worksteal tests runtime export

lint: $(VENV)/.done ## ruff, rules and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.done ## mypy --strict on both packages
	$(BIN)/mypy

ci: lint types demo test ## what .ci/run runs

export: $(VENV)/.done ## POLICY=... REFERENCE=... PRECISION=int8 OUT=... [FLAGS="--target cuda"]
	$(BIN)/stepscore export --policy "$(POLICY)" --reference "$(REFERENCE)" --precision $(PRECISION) --output "$(OUT)" $(FLAGS)

bench-memory: $(VENV)/.done ## peak memory of an export and of the head -> benchmarks/results
	$(BIN)/python -m benchmarks.memory $(FLAGS)

bench-fidelity: $(VENV)/.done ## error of every storage against fp64, beside PyTorch fp16 and bf16
	$(BIN)/python -m parity_tests.table --output benchmarks/results/fidelity.json $(FLAGS)

bench-products: $(VENV)/.done ## share of the integer products in a coded int8 pair's time, by ONNX Runtime's profile
	$(BIN)/python -m benchmarks.products $(FLAGS)

example: $(VENV)/.done ## train the bundled pair again (up to 40 minutes)
	$(BIN)/python examples/train.py --output examples

clean: ## remove environments, caches and outputs
	rm -rf $(VENV) $(DEMO) out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) torch
	$(BIN)/python $(PIP_INSTALL) --editable '.[cpu,export,torch,dev]'
	touch $@

$(DEMO)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python $(PIP_INSTALL) --editable '.[cpu,export]'
	touch $@
