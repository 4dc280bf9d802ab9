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
# Programs that some tests need and skip without, each with its package of Debian.
TOOLS := prometheus:prometheus chromium:chromium kubectl:kubernetes-client nginx:nginx strace:strace
# Those that are not wanted: make tools WITHOUT=chromium.
WITHOUT ?=
PROGRAM = $(firstword $(subst :, ,$(1)))
PACKAGE = $(lastword $(subst :, ,$(1)))
MISSING = $(strip $(foreach tool,$(filter-out $(addsuffix :%,$(WITHOUT)),$(TOOLS)),$(if $(shell command -v $(call PROGRAM,$(tool))),,$(call PACKAGE,$(tool)))))
APT_GET := apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=0 -o Acquire::http::Timeout=20
# The loops and the engine are also measured with Debian's libjemalloc2 if it is there.
JEMALLOC := $(firstword $(wildcard /usr/lib/*/libjemalloc.so.2))
LOOPS_AND_ENGINE := --device cpu --workload short --workload long --contestant "published loop" --contestant "ideal loop" --contestant engine
BOUNDS := --activation-mib 384 --activation-mib 256
# Processes that share out the files of tests; tests that share a fixture stay together.
TEST_PROCESSES ?= 2
# Processes that share cores must sleep while they wait, not spin.
export OMP_WAIT_POLICY ?= PASSIVE

# What python -m tests.sweep is told: SWEEP="--family llama qwen3", SWEEP=--write.
SWEEP ?=
FUZZ ?=

.PHONY: setup demo test test-all test-gpu kills sweep fuzz contract inspector monitoring tools check rooms manifests policies image-steps benchmark clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(TORCH)
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/python examples/demo.py

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses $(TEST_PROCESSES) --dist loadfile

# Also what takes minutes: a service that is killed at every stage of an update, and starts again.
test-all: setup
	$(BIN)/python -m pytest

test-gpu: setup
	$(BIN)/python -m pytest -m gpu

# Kill -9 at every system call that changes the state directory (needs strace), then KILLS times at random under load.
KILLS ?= 200
kills: setup
	OMP_NUM_THREADS=1 VIGOR_TEST_KILLS=$(KILLS) $(BIN)/python -m pytest -s tests/integration/test_killed_at_every_call.py \
		tests/integration/test_killed_again_and_again.py

# Every model type of transformers against a loop in float64: half an hour on two cores.
sweep: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.sweep $(SWEEP)

# Ten minutes of requests that no honest caller sends, against a running service: FUZZ="--seconds 60 --seed 7".
fuzz: setup
	$(BIN)/python -m tests.fuzz $(FUZZ)

# Dashboards and alerts against a real Prometheus that scrapes a real service.
monitoring: setup
	$(BIN)/python -m pytest tests/monitoring

# Needs root. Neither server is to run as a service of the machine because of it: the tests start their own.
tools:
	$(if $(wildcard /etc/systemd/system),$(foreach server,$(filter prometheus nginx,$(MISSING)),ln -sf /dev/null /etc/systemd/system/$(server).service;))
	$(if $(MISSING),$(APT_GET) update)
	$(if $(MISSING),$(APT_GET) install --yes --no-install-recommends $(MISSING))

# A running service against its own OpenAPI description; schemathesis has an environment of its own.
contract: setup .venv-contract/.ready
	$(BIN)/python -m tests.support.contract --schemathesis .venv-contract/bin/schemathesis

.venv-contract/.ready:
	$(PYTHON) -m venv .venv-contract
	.venv-contract/bin/python -m pip install --quiet 'schemathesis>=4.32,<4.33'
	@touch $@

# The inspector in Chromium, which `make tools` installs; SCREENSHOTS=docs/images takes the pictures of its page anew.
SCREENSHOTS ?=
inspector: setup
	$(BIN)/python -m pytest tests/inspector
	$(if $(SCREENSHOTS),$(BIN)/python -m tests.inspector.screenshots $(SCREENSHOTS))

check: setup manifests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest --quiet tests/repo/test_architecture.py tests/repo/test_exported_members.py

# The rooms of the packages, low to high, with their modules and lines.
rooms: setup
	$(BIN)/python -m tests.repo.rooms

# Whatever k8s/ can be rendered to, by the schemas of Kubernetes; what its words mean is in tests/k8s.
manifests: setup
	$(BIN)/yamllint --strict k8s .github .yamllint.yaml
	$(BIN)/hadolint Dockerfile
	$(BIN)/python -m pytest --quiet tests/k8s/test_schemas.py

# Checkov's rules for manifests and the Dockerfile; it has an environment of its own, as it pins what others need newer.
policies: .venv-checkov/.ready
	for name in overlays/cpu-dev overlays/gpu examples/trainer-job; do \
		kubectl kustomize k8s/$$name || exit 1; echo ---; done > .venv-checkov/manifests.yaml
	.venv-checkov/bin/checkov --file .venv-checkov/manifests.yaml --file Dockerfile --framework kubernetes dockerfile \
		--compact --quiet --skip-download

.venv-checkov/.ready:
	$(PYTHON) -m venv .venv-checkov
	.venv-checkov/bin/python -m pip install --quiet 'checkov==3.3.30'
	@touch $@

# The Dockerfile's own steps on top of this machine's files, where there is no docker: needs root.
image-steps: setup
	TORCH='$(TORCH)' $(BIN)/python -m pytest tests/image

benchmark: setup
	$(PIP_INSTALL) --editable '.[dev,benchmarks]'
	$(BIN)/python -m benchmarks.engine $(if $(filter cpu,$(WHERE)),$(BOUNDS)) --out $(RESULTS)/engine_$(WHERE)
	$(if $(JEMALLOC),LD_PRELOAD=$(JEMALLOC) $(BIN)/python -m benchmarks.engine $(LOOPS_AND_ENGINE) $(BOUNDS) \
		--out $(RESULTS)/engine_cpu-jemalloc)
	$(BIN)/python -m benchmarks.growth --out $(RESULTS)/growth_$(WHERE)
	$(BIN)/python -m benchmarks.endurance --out $(RESULTS)/endurance_cpu
	$(BIN)/python -m benchmarks.weights --out $(RESULTS)/weights_cpu
	$(BIN)/python -m benchmarks.deltas --out $(RESULTS)/deltas_cpu
	$(BIN)/python -m benchmarks.overlap --out $(RESULTS)/overlap_cpu
	$(BIN)/python -m benchmarks.serving --out $(RESULTS)/serving_cpu
	$(BIN)/python -m benchmarks.metrics_cost --out $(RESULTS)/metrics-cost_cpu
	$(BIN)/python -m benchmarks.long_sequences $(LONG) --out $(RESULTS)/long-sequences_$(WHERE)
	$(BIN)/python -m benchmarks.publish

clean:
	rm -rf $(VENV) .venv-contract .venv-checkov demo dist
