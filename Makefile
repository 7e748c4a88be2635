# Environments live in .venv (development), .venv-demo (what a user installs) and .venv-t5 (development with
# transformers 5); all are disposable.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := .venv-demo
VENV_T5 := .venv-t5
VENV_SBOM := .venv-sbom
SBOM ?= dist/sbom.json
SBOM_EXTRAS := cpu,export,select,server,data
PYTHONS ?= $(PYTHON)
PIP_INSTALL := -m pip install --quiet --constraint constraints.txt
# One thread a worker: two that wait for each other's BLAS threads take ten times as long for small products.
# Compiled files are kept whatever the shell says: rewriting the asserts of all tests takes 3 s of each worker.
PYTEST_OPTIONS := -m pytest -n 2 --dist worksteal
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST_OPTIONS)
export OMP_NUM_THREADS ?= 2
PORTABLE_TESTS := $(addprefix tests/runtime/,test_scorer.py test_rewards.py batching memory prompt \
    jobs/test_job.py jobs/test_shards.py)

POLICY ?= examples/pair/policy
REFERENCE ?= examples/pair/reference
PRECISION ?= int8
OUT ?= out/pair

.DEFAULT_GOAL := help
.PHONY: help setup demo check test test-transformers5 test-portable lint types ci export dist check-wheel sbom peers \
    bench-throughput bench-latency bench-memory bench-residency bench-full-size bench-fidelity bench-products \
    bench-exporters bench-matrix bench-beam-search bench-gpu bench-serve bench-extras bench-report docs docs-check browser report-picture \
    example clean

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

test-portable: $(VENV)/.done ## the core's tests with everything hidden that only Linux or POSIX has
	$(PYTEST) -q -p testing.without_linux -m "not slow" $(or $(TESTS),$(PORTABLE_TESTS))

lint: $(VENV)/.done ## ruff, rules and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.done ## mypy --strict on both packages
	$(BIN)/mypy

docs: $(VENV)/.done ## write the generated pages: commands, API, errors, schemas, benchmark tables and plots
	$(BIN)/python -m docs.generate

docs-check: $(VENV)/.done ## fail with a diff if a generated page is stale
	$(BIN)/python -m docs.generate --check

ci: lint types docs-check demo test ## all checks, as .ci/run runs them

export: $(VENV)/.done ## POLICY=... REFERENCE=... PRECISION=int8 OUT=... [FLAGS="--target cuda"]
	$(BIN)/stepscore export --policy "$(POLICY)" --reference "$(REFERENCE)" --precision $(PRECISION) --output "$(OUT)" $(FLAGS)

bench-throughput: $(VENV)/.done ## throughput against peers: transformers, llama.cpp, optimum [FLAGS=--quick]
	$(BIN)/python -m benchmarks throughput $(or $(FLAGS),--shape 0.5b)
	$(if $(FLAGS),,$(BIN)/python -m benchmarks throughput --shape 1.5b --layers 8)

bench-latency: $(VENV)/.done ## seconds per solution of 64 to 4,096 tokens, loading, cold start [FLAGS=--quick]
	$(BIN)/python -m benchmarks latency $(FLAGS)

bench-memory: $(VENV)/.done ## peak memory of an export, and of scoring one long sequence [FLAGS=--quick]
	$(BIN)/python -m benchmarks memory $(FLAGS)

bench-residency: $(VENV)/.done ## peak memory, its estimate and speed by residency [FLAGS=--quick]
	$(BIN)/python -m benchmarks residency $(FLAGS)

bench-full-size: $(VENV)/.done ## export and scoring of a 2 x 7.6 B pair: memory and time [FLAGS=--quick]
	$(BIN)/python -m benchmarks full_size $(FLAGS)

bench-fidelity: $(VENV)/.done ## error of every form and of PyTorch against fp64 [FLAGS=--quick]
	$(BIN)/python -m benchmarks fidelity $(FLAGS)

bench-products: $(VENV)/.done ## share of each operator in the time of a coded int8 pair [FLAGS=--quick]
	$(BIN)/python -m benchmarks operator_profile $(FLAGS)

bench-exporters: $(VENV)/.done ## stepscore's exporter against optimum's: memory, size, tokens/s [FLAGS=--quick]
	$(BIN)/python -m benchmarks exporter_comparison $(FLAGS)

bench-matrix: $(VENV)/.done ## every format and precision: disk, memory, speed, fidelity [FLAGS=--quick]
	$(BIN)/python -m benchmarks format_matrix $(FLAGS)

bench-beam-search: $(VENV)/.done ## beam search with and without prefix sharing [FLAGS=--quick]
	$(BIN)/python -m benchmarks beam_search $(FLAGS)

bench-gpu: $(VENV)/.done ## on a GPU: tokens/s and memory against cuBLAS, PyTorch, bitsandbytes [FLAGS=--quick]
	$(BIN)/python -m benchmarks gpu $(FLAGS)

bench-serve: $(VENV)/.done ## the server under load, on the loopback interface [FLAGS=--quick]
	$(BIN)/python -m benchmarks serve $(FLAGS)

bench-extras: $(VENV)/.done ## what stepscore and each extra take on disk, in clean environments [FLAGS=--quick]
	$(BIN)/python -m benchmarks extra_sizes $(FLAGS)

bench-report: $(VENV)/.done ## all results as one HTML page, out/benchmarks.html [FLAGS=--quick]
	$(BIN)/python -m benchmarks reporting.report $(FLAGS)

dist: $(VENV)/.done ## build dist/: the sdist, the wheel from it, and their SHA-256
	rm -rf dist
	$(BIN)/python -m hatchling build --target sdist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist dist/*.tar.gz
	cd dist && sha256sum *.tar.gz *.whl > SHA256SUMS

check-wheel: dist ## install the wheel in a clean environment of each Python and score there [PYTHONS="python3.11 ..."]
	mkdir -p out
	$(BIN)/stepscore export --quiet --force --policy $(POLICY) --reference $(REFERENCE) --output out/wheel-pair
	head -n 40 examples/problems.jsonl > out/wheel-input.jsonl
	$(BIN)/stepscore score out/wheel-pair out/wheel-input.jsonl --overwrite --output out/wheel-expected.jsonl
	$(BIN)/python tools/check_wheel.py dist/*.whl out/wheel-pair out/wheel-expected.jsonl out/wheel-input.jsonl \
	    --python $(PYTHONS)

sbom: dist ## write dist/sbom.json (CycloneDX): what a user's environment has, at the versions of constraints.txt
	rm -rf $(VENV_SBOM) && $(PYTHON) -m venv --without-pip $(VENV_SBOM)
	$(BIN)/python -m pip --python $(VENV_SBOM)/bin/python install --quiet --constraint constraints.txt \
	    "$$(echo dist/*.whl)[$(SBOM_EXTRAS)]"
	$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --mc-type library \
	    --spec-version 1.6 --output-file $(SBOM) $(VENV_SBOM)/bin/python

peers: $(VENV)/.done ## install the peers of bench-throughput; builds llama.cpp (5 to 10 minutes)
	CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_CXX_FLAGS='-include $(CURDIR)/benchmarks/peers/tile_config.h'" \
	    $(BIN)/python $(PIP_INSTALL) --no-cache-dir --editable '.[cpu,export,plots,torch,optimum,dev,peers]'

browser: ## install Debian's chromium, for the tests of the report (needs root)
	command -v chromium > /dev/null || (apt-get update && apt-get install -y --no-install-recommends chromium)

report-picture: $(VENV)/.done ## take docs/report*.png: reports of the bundled pair, in chromium
	$(BIN)/python -m examples.report_picture

example: $(VENV)/.done ## train the bundled pair again (up to 40 minutes)
	$(BIN)/python examples/train.py --output examples

clean: ## remove environments, caches and outputs
	rm -rf $(VENV) $(DEMO) $(VENV_T5) $(VENV_SBOM) out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) torch
	$(BIN)/python $(PIP_INSTALL) --editable '.[cpu,export,select,server,tracing,data,plots,ray,torch,optimum,dev]'
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
	$(VENV_T5)/bin/python -m pip install --quiet --constraint $(VENV_T5)/constraints.txt --editable '.[cpu,export,plots,torch,dev]'
	touch $@
