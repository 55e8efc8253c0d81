PYTHON ?= python3
UV_VERSION := 0.13.8
TOOLS := .tools
VENV := .venv
UV := $(TOOLS)/bin/uv
LOCK := requirements.lock
TASK ?= ip2p
# One thread: on a busy machine with few cores torch is many times slower with more.
export OMP_NUM_THREADS ?= 1
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
	$(UV) pip sync --quiet --require-hashes --python $(VENV) $(LOCK)
	$(UV) pip install --quiet --no-deps --no-build-isolation --python $(VENV) -e .
	@touch $@

lock: $(UV) ## resolve the lock again; it names no host
	$(UV) pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header --quiet --upgrade -o $(LOCK)
	@! grep -n '://' $(LOCK)

.PHONY: help setup lock
