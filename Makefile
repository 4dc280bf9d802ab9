# Every command installs what it needs: the only requirement is python >= 3.11 with pip.
PYTHON ?= python3
# The build of torch: a CPU build here; on a GPU machine for example TORCH="torch --index-url URL-OF-YOUR-CUDA-BUILDS".
TORCH ?= torch==2.13.0
# The versions that the tests were written against; empty for the newest that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
VENV ?= .venv
# Runs before anything is installed, so its syntax must be valid in every version of python.
REQUIRE_PYTHON := import sys; sys.exit(sys.version_info < (3, 11) and \
	"VIGOR needs python 3.11 or newer, and $(PYTHON) is %d.%d: give another, as in make demo PYTHON=python3.12" % sys.version_info[:2])
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet $(addprefix --constraint ,$(CONSTRAINTS))
# `make benchmark WHERE=gpu LONG=` on a GPU; a CPU takes SmolLM2's shapes with six of its thirty layers to 32,768 tokens.
WHERE ?= cpu
LONG ?= --layers 6
RESULTS := benchmarks/results
# Programs that some tests need, each with its Debian package. Without the program these tests are skipped.
TOOLS := prometheus:prometheus chromium:chromium kubectl:kubernetes-client nginx:nginx strace:strace
# Programs not to install: make tools WITHOUT=chromium.
WITHOUT ?=
PROGRAM = $(firstword $(subst :, ,$(1)))
PACKAGE = $(lastword $(subst :, ,$(1)))
MISSING = $(strip $(foreach tool,$(filter-out $(addsuffix :%,$(WITHOUT)),$(TOOLS)),$(if $(shell command -v $(call PROGRAM,$(tool))),,$(call PACKAGE,$(tool)))))
APT_GET := apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=0 -o Acquire::http::Timeout=20
# The loops and the engine are also measured with Debian's libjemalloc2 if it is there.
JEMALLOC := $(firstword $(wildcard /usr/lib/*/libjemalloc.so.2))
LOOPS_AND_ENGINE := --device cpu --workload short --workload long --contestant "published loop" --contestant "ideal loop" --contestant engine
BOUNDS := --activation-mib 384 --activation-mib 256
# The models that the study makes itself; its real model has a separate result, with its own hardware and date.
BASE_MODELS := --subject random-slips --subject dropped-carries
# Number of processes among which test files are divided; tests that share a fixture stay together. A test that waits
# for a process leaves its core idle, so there is one process more than the two cores; unit tests do not wait.
TEST_PROCESSES ?= 3
SHARED_OUT := --dist loadfile --durations 25
# Processes that share cores must sleep while they wait, not spin.
export OMP_WAIT_POLICY ?= PASSIVE
# Tests start many interpreters: each would compile the project again if the environment disabled bytecode files.
export PYTHONDONTWRITEBYTECODE :=

# Arguments of python -m tests.sweep: SWEEP="--family llama qwen3", SWEEP=--write.
SWEEP ?=
FUZZ ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test-unit test test-slow test-all test-gpu coverage kills first-hour sweep fuzz contract inspector \
	monitoring tools check rooms docs manifests policies render image-steps benchmark study dist clean

help: ## This list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r target help; do \
		printf '%-12s %s\n' "$$target" "$$help"; done

setup: $(VENV)/.ready ## Everything that the other commands need, in .venv

$(VENV)/.users-ready: pyproject.toml constraints.txt
	@$(PYTHON) -c '$(REQUIRE_PYTHON)'
	@echo "Installing torch, the service and the trainer into $(VENV): one to five minutes, most of it downloads."
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(TORCH)
	$(PIP_INSTALL) --editable '.[service,trainer]'
	@touch $@

$(VENV)/.ready: $(VENV)/.users-ready
	@echo "Installing what the tests need into $(VENV): about a minute."
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

# The demo needs only what users install, without the development tools.
demo: $(VENV)/.users-ready ## From nothing: two runs side by side, by gradient norm and at random, and their report; on a CPU
	$(BIN)/python -m examples.demo

test-unit: setup ## The tests that start no process: while you work, and before a push
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not integration" --numprocesses 2 $(SHARED_OUT)

test: setup ## All tests that need no GPU, without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses $(TEST_PROCESSES) $(SHARED_OUT)

test-slow: setup ## The slow tests alone: a service that is killed at every stage of an update, and starts again
	$(BIN)/python -m pytest -m slow

test-all: setup ## All tests, the slow ones too
	$(BIN)/python -m pytest

test-gpu: setup ## The tests that need a CUDA device, on a machine that has one
	$(BIN)/python -m pytest -m gpu

# SUMMARY=FILE also appends the table to a file, as Markdown.
SUMMARY ?=
coverage: setup ## The tests of `make test` under coverage, and the share of each room; fails below what was measured
	$(BIN)/python -m coverage erase
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -m "not slow and not processor_time" --numprocesses $(TEST_PROCESSES) $(SHARED_OUT)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage json --quiet --fail-under 0 -o coverage.json
	$(BIN)/python -m tests.repo.coverage_by_room coverage.json $(SUMMARY)
	$(BIN)/python -m coverage report --format total

KILLS ?= 200
kills: setup ## Kill -9 at every system call that changes the state directory (needs strace), then KILLS times under load
	OMP_NUM_THREADS=1 VIGOR_TEST_KILLS=$(KILLS) $(BIN)/python -m pytest -s tests/integration/test_killed_at_every_call.py \
		tests/integration/test_killed_again_and_again.py

first-hour: setup ## README, quickstart and tutorial pasted into the shell of a fresh clone, with the seconds of each block
	$(BIN)/python -m pytest -s tests/repo/test_pasted_pages.py

sweep: setup ## Every model type of transformers, tiny, against a loop in float64: half an hour on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.sweep $(SWEEP)

fuzz: setup ## Ten minutes of requests that no honest caller sends, or FUZZ="--seconds 60 --seed 7"
	$(BIN)/python -m tests.fuzz $(FUZZ)

monitoring: setup ## Dashboards and alerts against a real Prometheus that scrapes a real service
	$(BIN)/python -m pytest tests/monitoring

# Installing Prometheus or nginx must not start it as a service of the machine: the tests start their own.
tools: ## Programs that some tests need, from Debian, as root: Prometheus, Chromium, kubectl, nginx, strace
	$(if $(wildcard /etc/systemd/system),$(foreach server,$(filter prometheus nginx,$(MISSING)),ln -sf /dev/null /etc/systemd/system/$(server).service;))
	$(if $(MISSING),$(APT_GET) update)
	$(if $(MISSING),$(APT_GET) install --yes --no-install-recommends $(MISSING))

contract: setup .venv-contract/.ready ## A running service against its own OpenAPI description
	$(BIN)/python -m tests.support.contract --schemathesis .venv-contract/bin/schemathesis

# schemathesis is installed in a separate environment.
.venv-contract/.ready:
	$(PYTHON) -m venv .venv-contract
	.venv-contract/bin/python -m pip install --quiet 'schemathesis>=4.32,<4.33'
	@touch $@

SCREENSHOTS ?=
inspector: setup ## The inspector and the report in Chromium; SCREENSHOTS=docs/images takes the pictures of both anew
	$(BIN)/python -m pytest tests/inspector tests/trainer/reports
	$(if $(SCREENSHOTS),$(BIN)/python -m tests.inspector.screenshots $(SCREENSHOTS))
	$(if $(SCREENSHOTS),$(BIN)/python -m tests.trainer.reports.screenshots $(SCREENSHOTS))

check: setup manifests ## Format, lint, types, the rules for imports, and `make manifests`
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest --quiet tests/repo/test_architecture.py tests/repo/test_exported_members.py

rooms: setup ## The rooms of the packages, low to high, with their modules and lines
	$(BIN)/python -m tests.repo.rooms

docs: .venv-docs/.ready ## The docs as a site in site/; a broken link is an error
	.venv-docs/bin/mkdocs build --strict

# mkdocs is installed in a separate environment, with only the light client.
.venv-docs/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --editable '.[docs]'
	@touch $@

# Other tests in tests/k8s and tests/deploy check that the manifests fit the service.
manifests: setup ## Check every rendering of k8s/ against the schemas of Kubernetes; lint YAML and the Dockerfile
	$(BIN)/yamllint --strict k8s deploy .github *.yml .*.yaml
	$(BIN)/hadolint Dockerfile
	$(BIN)/python -m pytest --quiet tests/k8s/test_schemas.py

policies: .venv-checkov/.ready ## Check manifests and the Dockerfile by Checkov's rules
	for name in overlays/cpu-dev overlays/example overlays/gpu overlays/ray examples/trainer-job; do \
		kubectl kustomize k8s/$$name || exit 1; echo ---; done > .venv-checkov/manifests.yaml
	cat k8s/examples/trainer-job/job.yaml >> .venv-checkov/manifests.yaml
	.venv-checkov/bin/checkov --file .venv-checkov/manifests.yaml --file Dockerfile --framework kubernetes dockerfile \
		--compact --quiet --skip-download

# checkov is installed in a separate environment, as it pins versions that are too old for other tools.
.venv-checkov/.ready:
	$(PYTHON) -m venv .venv-checkov
	.venv-checkov/bin/python -m pip install --quiet 'checkov==3.3.30'
	@touch $@

# The overlay to render, and the file to write: make render OVERLAY=k8s/overlays/own
OVERLAY ?= k8s/overlays/gpu
INSTALL ?= install.yaml
render: ## All manifests of an overlay in one file, install.yaml: needs kubectl alone
	kubectl kustomize $(OVERLAY) --output $(INSTALL)

image-steps: setup ## The Dockerfile's own steps without docker, and a score by what they make: needs root
	TORCH='$(TORCH)' $(BIN)/python -m pytest tests/image

benchmark: setup ## Speed, memory and fidelity, into benchmarks/results
	$(PIP_INSTALL) --editable '.[dev,benchmarks]'
	$(BIN)/python -m benchmarks.engine $(if $(filter cpu,$(WHERE)),$(BOUNDS)) --out $(RESULTS)/engine_$(WHERE)
	$(if $(JEMALLOC),LD_PRELOAD=$(JEMALLOC) $(BIN)/python -m benchmarks.engine $(LOOPS_AND_ENGINE) $(BOUNDS) \
		--out $(RESULTS)/engine_cpu-jemalloc)
	$(BIN)/python -m benchmarks.signals --out $(RESULTS)/signals_$(WHERE)
	$(BIN)/python -m benchmarks.growth --out $(RESULTS)/growth_$(WHERE)
	$(BIN)/python -m benchmarks.endurance --out $(RESULTS)/endurance_cpu
	$(BIN)/python -m benchmarks.weights --out $(RESULTS)/weights_cpu
	$(BIN)/python -m benchmarks.deltas --out $(RESULTS)/deltas_cpu
	$(BIN)/python -m benchmarks.overlap --out $(RESULTS)/overlap_cpu
	$(BIN)/python -m benchmarks.serving --out $(RESULTS)/serving_cpu
	$(BIN)/python -m benchmarks.front --out $(RESULTS)/front_cpu
	$(BIN)/python -m benchmarks.metrics_cost --out $(RESULTS)/metrics-cost_cpu
	$(BIN)/python -m benchmarks.long_sequences $(LONG) --out $(RESULTS)/long-sequences_$(WHERE)
	$(BIN)/python -m benchmarks.scaling --shapes qwen2.5-0.5b --out $(RESULTS)/scaling_cpu
	$(BIN)/python -m benchmarks.plan --out $(RESULTS)/plan
	$(BIN)/python -m benchmarks.publish

study: setup ## What rewards do to a policy: four hours on two cores, and it goes on where it was interrupted
	$(PIP_INSTALL) --editable '.[dev,benchmarks]'
	$(BIN)/python -m benchmarks.study $(BASE_MODELS) --out $(RESULTS)/study_cpu
	$(BIN)/python -m benchmarks.study --subject smollm2-addition --out $(RESULTS)/study_cpu-smollm2
	$(BIN)/python -m benchmarks.publish

dist: ## Wheel and sdist into dist/, as a release has them
	$(PYTHON) -m venv .venv-build
	.venv-build/bin/python -m pip install --quiet build==1.6.1
	.venv-build/bin/python -m build

clean: ## Remove the environments and what was built
	rm -rf $(VENV) .venv-build .venv-contract .venv-checkov .venv-docs demo tutorial dist site install.yaml coverage.json .coverage .coverage.*
