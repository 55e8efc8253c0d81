PYTHON ?= python3
UV_VERSION := 0.13.8
TOOLS := .tools
VENV := .venv
UV := $(TOOLS)/bin/uv
LOCK := requirements.lock
TASK ?= ip2p
DEMOS := ip2p controlnet stablesr inpaint high_frequency
DEMO_KEYS := depth_search.num_inference_steps=20 'tsopt.num_inference_steps=[10,5]' loss.task=0 trainer.max_steps=40
DEMO_KEYS_ip2p := depth_search.num_samples=12 tsopt.num_samples=8 evaluate.num_samples=16
DEMO_KEYS_controlnet := depth_search.num_samples=8 tsopt.num_samples=8 evaluate.num_samples=16
DEMO_KEYS_inpaint := $(DEMO_KEYS_controlnet)
DEMO_KEYS_high_frequency := $(DEMO_KEYS_controlnet)
DEMO_KEYS_stablesr := 'compress.stages=[depth_search,tsopt,evaluate,report]' depth_search.num_samples=4 \
  tsopt.num_samples=4 evaluate.num_samples=8
TEST_PROCESSES ?= 2
# uv reads neither pip.conf nor PIP_INDEX_URL: hand a mirror over when one is set.
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(UV):
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0] + "; name one by PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"

setup: $(VENV)/.ok ## create .venv from the hashed lock and install idc into it
$(VENV)/.ok: $(LOCK) pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip sync --quiet --compile-bytecode --require-hashes --python $(VENV) $(LOCK)
	$(UV) pip install --quiet --no-deps --no-build-isolation --python $(VENV) -e .
	@touch $@

lock: $(UV) ## resolve the lock again; it names no host
	$(UV) pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header --quiet --upgrade -o $(LOCK)
	@! grep -n '://' $(LOCK)

demo: setup ## the main job on photographs: TASK=ip2p (default), controlnet, stablesr, inpaint, high_frequency or all; KEYS=... adds keys
	$(foreach task,$(if $(filter all,$(TASK)),$(DEMOS),$(TASK)),\
	  $(VENV)/bin/idc compress task=$(task) $(DEMO_KEYS) $(DEMO_KEYS_$(task)) $(KEYS) &&) true

benchmarks: setup ## renew the tables of README.md and docs/benchmarks.md from docs/results
	$(VENV)/bin/python -m scripts.benchmarks

results: setup ## measure the stored results in docs/results anew: hours, goes on where it was stopped; NAMES=... picks some
	$(VENV)/bin/python -m scripts.results $(NAMES)

test: setup lint type ## set-up, lint, types and the default tests (offline, CPU)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile

lint: setup ## ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

type: setup ## mypy
	$(VENV)/bin/mypy

format: setup ## let ruff rewrite what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

smoke: setup ## every stage of every task in seconds
	@for task in $(DEMOS); do $(VENV)/bin/idc compress experiment=smoke task=$$task || exit; done

clean: ## remove the environment and the caches, never outputs/
	rm -rf $(VENV) $(TOOLS) .mypy_cache .ruff_cache .pytest_cache

.PHONY: help setup lock demo benchmarks results test lint type format smoke clean
