# Every command sets up what it needs: python >= 3.11 with pip is all that has to be there.
PYTHON ?= python3
# The build of torch: a CPU build here; on a GPU machine for example TORCH="torch --index-url URL-OF-YOUR-CUDA-BUILDS".
TORCH ?= torch==2.13.0
# The versions that the tests were written against; empty for the newest that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet $(addprefix --constraint ,$(CONSTRAINTS))
# `make benchmark WHERE=gpu LONG=` on a GPU; a CPU takes SmolLM2's shapes with six of its thirty layers to 32,768 tokens.
WHERE ?= cpu
LONG ?= --layers 6
RESULTS := benchmarks/results
# The loops and the engine are also measured with glibc as the service sets it, and with Debian's libjemalloc2 if it is there.
JEMALLOC := $(firstword $(wildcard /usr/lib/*/libjemalloc.so.2))
LOOPS_AND_ENGINE := --workload short --workload long \
	--contestant "published loop" --contestant "ideal loop" --contestant engine
# Processes that share cores must sleep while they wait, not spin.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test test-all test-gpu contract inspector check benchmark clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(TORCH)
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/python examples/demo.py

test: setup
	$(BIN)/python -m pytest -m "not slow"

# Also what takes minutes: a service that is killed at every stage of an update, and starts again.
test-all: setup
	$(BIN)/python -m pytest

test-gpu: setup
	$(BIN)/python -m pytest -m gpu

# A running service against its own OpenAPI description; schemathesis has an environment of its own.
contract: setup .venv-contract/.ready
	$(BIN)/python -m tests.contract --schemathesis .venv-contract/bin/schemathesis

.venv-contract/.ready:
	$(PYTHON) -m venv .venv-contract
	.venv-contract/bin/python -m pip install --quiet 'schemathesis>=4.32,<4.33'
	@touch $@

# The inspector in Chromium, which `make tools` installs; SCREENSHOTS=docs/images takes the pictures of its page anew.
SCREENSHOTS ?=
inspector: setup
	$(BIN)/python -m pytest tests/inspector
	$(if $(SCREENSHOTS),$(BIN)/python -m tests.inspector.screenshots $(SCREENSHOTS))

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest --quiet tests/test_architecture.py tests/test_exported_members.py

benchmark: setup
	$(PIP_INSTALL) --editable '.[dev,benchmarks]'
	$(BIN)/python -m benchmarks.engine --repeats 5 --out $(RESULTS)/engine_$(WHERE)
	MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=1048576 $(BIN)/python -m benchmarks.engine --repeats 2 \
		$(LOOPS_AND_ENGINE) --out $(RESULTS)/engine_cpu-compact
	$(if $(JEMALLOC),LD_PRELOAD=$(JEMALLOC) $(BIN)/python -m benchmarks.engine --repeats 2 $(LOOPS_AND_ENGINE) \
		--out $(RESULTS)/engine_cpu-jemalloc)
	$(BIN)/python -m benchmarks.growth --out $(RESULTS)/growth_$(WHERE)
	$(BIN)/python -m benchmarks.endurance --out $(RESULTS)/endurance_cpu
	$(BIN)/python -m benchmarks.weights --out $(RESULTS)/weights_cpu
	$(BIN)/python -m benchmarks.deltas --out $(RESULTS)/deltas_cpu
	$(BIN)/python -m benchmarks.overlap --out $(RESULTS)/overlap_cpu
	$(BIN)/python -m benchmarks.serving --out $(RESULTS)/serving_cpu
	$(BIN)/python -m benchmarks.long_sequences $(LONG) --out $(RESULTS)/long-sequences_$(WHERE)
	$(BIN)/python -m benchmarks.publish

clean:
	rm -rf $(VENV) .venv-contract demo dist
