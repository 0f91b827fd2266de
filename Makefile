# Every target sets up what it needs by itself: a virtual environment in .venv from the pinned constraints.
PYTHON ?= python3
BIN := .venv/bin
# Processes that run the tests side by side, one core each; each may start a Ray and a Prefect server, some 3 GB.
WORKERS ?= 2
# Modules are compiled when they are first imported, and kept: a third of what is installed ever is.
unexport PYTHONDONTWRITEBYTECODE
INSTALL = UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" $(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt

.PHONY: help demo test quick coverage changed lint chaos bench clean
help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

demo: .venv/run.stamp ## Label the example photographs into demo-out/, on this machine, without a GPU
	$(BIN)/xsam-label demo

# Files are given to whichever process is free; a process runs all of a file.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# How long simulated lives go on in `make chaos`: 1 for 20,000 of the first kinds and 6,500 of further ones, 5 for five times as many.
CHAOS ?= 1
# What a change is compared with, by `make changed`.
SINCE ?= main

test: .venv/test.stamp ## Run all tests
	$(PYTEST)

quick: .venv/test.stamp ## Run the tests that need no server, no Ray and no minute
	$(PYTEST) -m "not slow"

coverage: .venv/test.stamp ## Run the quick tests, and tell what share of the lines they cover
	$(PYTEST) -m "not slow" $(foreach package,xsam_model pipelines actors flows,--cov $(package)) --cov-report= --cov-fail-under=85

changed: .venv/test.stamp ## Run the tests that a change touches, since main or SINCE=COMMIT
	$(PYTEST) --changed $(SINCE)

lint: .venv/test.stamp ## Check style, types and the layering of the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

chaos: .venv/test.stamp ## Run the long form of the tests of crashes and storage faults
	XSAM_CHAOS=$(CHAOS) $(BIN)/python -m pytest tests/reliability -s
	XSAM_CHAOS=$(CHAOS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/simulation -n $(WORKERS)

bench: .venv/test.stamp ## Measure what benchmarks/ holds for a CPU
	$(BIN)/python -m benchmarks

clean: ## Remove the environment and the demo's output
	rm -rf .venv demo-out

.venv/uv.stamp:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check uv
	@touch $@

.venv/run.stamp: .venv/uv.stamp pyproject.toml constraints.txt
	$(INSTALL) -e .
	@touch $@

.venv/test.stamp: .venv/run.stamp
	$(INSTALL) -e '.[test]'
	@touch $@
