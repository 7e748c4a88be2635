# Environments live in .venv (development), .venv-demo (what a user installs) and .venv-t5 (development with
# transformers 5); all are disposable.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := .venv-demo
VENV_T5 := .venv-t5
PIP_INSTALL := -m pip install --quiet --constraint constraints.txt
# One thread a worker: two that wait for each other's BLAS threads take ten times as long for small products.
PYTEST_OPTIONS := -m pytest -n 2 --dist worksteal
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST_OPTIONS)
export OMP_NUM_THREADS ?= 2

POLICY ?= examples/pair/policy
REFERENCE ?= examples/pair/reference
PRECISION ?= int8
OUT ?= out/pair

.DEFAULT_GOAL := help
.PHONY: help setup demo check test test-transformers5 lint types ci export peers \
    bench-throughput bench-latency bench-memory bench-residency bench-full-size bench-fidelity bench-products \
    bench-exporters bench-matrix bench-beam-search bench-gpu bench-report browser report-picture example clean

help: ## print this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

setup: $(VENV)/.done ## the development environment: torch, transformers, test tools

demo: $(DEMO)/.done ## export the bundled pair, score its test problems, show the wrong steps (no torch)
	$(DEMO)/bin/python examples/demo.py

check: lint types ## lint, types and the fast tests, in under a minute: the loop while you work
	HYPOTHESIS_PROFILE=dev $(PYTEST) -q -m "not slow and not torch and not browser and not optimum"

test: $(VENV)/.done ## all tests
	HYPOTHESIS_PROFILE=ci $(PYTEST)

test-transformers5: $(VENV_T5)/.done ## the tests that import transformers, with transformers 5
	OMP_NUM_THREADS=1 $(VENV_T5)/bin/python $(PYTEST_OPTIONS) $(or $(TESTS),parity_tests tests/export/parity tests/benchmarks/test_peers.py)

lint: $(VENV)/.done ## ruff, rules and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.done ## mypy --strict on both packages
	$(BIN)/mypy

ci: lint types demo test ## what .ci/run runs

export: $(VENV)/.done ## POLICY=... REFERENCE=... PRECISION=int8 OUT=... [FLAGS="--target cuda"]
	$(BIN)/stepscore export --policy "$(POLICY)" --reference "$(REFERENCE)" --precision $(PRECISION) --output "$(OUT)" $(FLAGS)

bench-throughput: $(VENV)/.done ## tokens/s beside transformers, llama.cpp and optimum -> benchmarks/results [FLAGS=--quick]
	$(BIN)/python -m benchmarks.throughput $(or $(FLAGS),--shape 0.5b)
	$(if $(FLAGS),,$(BIN)/python -m benchmarks.throughput --shape 1.5b --layers 8)

bench-latency: $(VENV)/.done ## seconds a solution of 64 to 4,096 tokens, loading, cold start [FLAGS=--quick]
	$(BIN)/python -m benchmarks.latency $(FLAGS)

bench-memory: $(VENV)/.done ## peak memory of an export and of the head [FLAGS=--quick]
	$(BIN)/python -m benchmarks.memory $(FLAGS)

bench-residency: $(VENV)/.done ## peak memory, estimate and speed of resident, alternate, stream [FLAGS=--quick]
	$(BIN)/python -m benchmarks.residency $(FLAGS)

bench-full-size: $(VENV)/.done ## 2 x 7.6 B parameters: export and scoring within their memory [FLAGS=--quick]
	$(BIN)/python -m benchmarks.full_size $(FLAGS)

bench-fidelity: $(VENV)/.done ## error of every storage against fp64, beside PyTorch fp16 and bf16 [FLAGS=--quick]
	$(BIN)/python -m benchmarks.fidelity --output benchmarks/results/fidelity.json $(FLAGS)

bench-products: $(VENV)/.done ## share of the integer products in a coded int8 pair's time [FLAGS=--quick]
	$(BIN)/python -m benchmarks.operator_profile $(FLAGS)

bench-exporters: $(VENV)/.done ## both exporters: export memory, size, tokens/s at fp32 [FLAGS=--quick]
	$(BIN)/python -m benchmarks.exporter_comparison $(FLAGS)

bench-matrix: $(VENV)/.done ## format x precision: disk, memory, speed, fidelity [FLAGS=--quick]
	$(BIN)/python -m benchmarks.format_matrix $(FLAGS)

bench-beam-search: $(VENV)/.done ## what a growing search costs, shared beginnings computed once and not [FLAGS=--quick]
	$(BIN)/python -m benchmarks.beam_search $(FLAGS)

bench-gpu: $(VENV)/.done ## on a GPU: tokens/s and memory beside the floor, PyTorch and bitsandbytes [FLAGS=--quick]
	$(BIN)/python -m benchmarks.gpu $(FLAGS)

bench-report: $(VENV)/.done ## results -> out/benchmarks.html, plots, and the tables in README.md
	$(BIN)/python -m benchmarks.reporting.report $(FLAGS)

peers: $(VENV)/.done ## what bench-throughput compares with; builds llama.cpp (5 to 10 minutes)
	CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_CXX_FLAGS='-include $(CURDIR)/benchmarks/peers/tile_config.h'" \
	    $(BIN)/python $(PIP_INSTALL) --no-cache-dir --editable '.[cpu,export,torch,optimum,dev,peers]'

browser: ## Debian's chromium, for the tests of the report (needs root)
	command -v chromium > /dev/null || (apt-get update && apt-get install -y --no-install-recommends chromium)

report-picture: $(VENV)/.done ## docs/report.png: the bundled pair's report, in chromium
	$(BIN)/python -m examples.report_picture

example: $(VENV)/.done ## train the bundled pair again (up to 40 minutes)
	$(BIN)/python examples/train.py --output examples

clean: ## remove environments, caches and outputs
	rm -rf $(VENV) $(DEMO) $(VENV_T5) out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) torch
	$(BIN)/python $(PIP_INSTALL) --editable '.[cpu,export,select,torch,optimum,dev]'
	touch $@

$(DEMO)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python $(PIP_INSTALL) --editable '.[cpu,export]'
	touch $@

$(VENV_T5)/.done: pyproject.toml constraints.txt constraints-transformers5.txt
	$(PYTHON) -m venv $(VENV_T5)
	awk -F== 'NR == FNR { pinned[$$1]; print; next } !($$1 in pinned)' constraints-transformers5.txt constraints.txt \
	    > $(VENV_T5)/constraints.txt
	$(VENV_T5)/bin/python -m pip install --quiet --constraint $(VENV_T5)/constraints.txt torch
	$(VENV_T5)/bin/python -m pip install --quiet --constraint $(VENV_T5)/constraints.txt --editable '.[cpu,export,torch,dev]'
	touch $@
