# morphogen. `make run` or `make test` may be the first and only command in a fresh clone: they install what they need.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup run test test-slow check bench bench-dry clean

# The newest Python from 3.11 on; `make setup PYTHON=/path/to/python` chooses another.
PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.13,$(shell command -v python$(v) 2>/dev/null)) python3)
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
OUT ?= runs/live_smoke
# Candidates that `make run` trains at a time; the lineage is the same whatever it is.
WORKERS ?= 2
INSTALL := -c constraints.txt -e '.[dev]'
# Without compiled files every process would take torch's thousands of sources anew, which is most of an import's time.
unexport PYTHONDONTWRITEBYTECODE

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(STAMP) ## make .venv and install morphogen into it (again whenever pyproject.toml or constraints.txt change)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "morphogen needs Python >= 3.11; try make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing into $(VENV) (half a minute with a warm cache, a few minutes without)"
	@{ $(PY) -m pip install --quiet --disable-pip-version-check uv \
	   && $(VENV)/bin/uv pip install --quiet --python $(VENV) $(addprefix --find-links ,$(PIP_FIND_LINKS)) $(INSTALL); } \
	 || { echo "uv did not manage it; once more with pip"; $(PY) -m pip install --quiet --disable-pip-version-check $(INSTALL); }
	@touch $(STAMP)

run: $(STAMP) ## evolve on real text for a few minutes, into runs/live_smoke (a second time: goes on, or shows it)
	@$(VENV)/bin/morphogen run configs/live_smoke.yaml --out $(OUT) --workers $(WORKERS) --resume

test: $(STAMP) ## the fast tests
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m 'not slow'

test-slow: $(STAMP) ## the longer proofs, and what is drawn at random from more examples
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m 'slow or hypothesis' --hypothesis-profile thorough

check: $(STAMP) ## style, strict types, import rule
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 0 tests/test_imports.py

bench: $(STAMP) ## measurements side by side; prints ratios
	@for script in $(filter-out benchmarks/gpu.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(PY) $$script; done

bench-dry: $(STAMP) ## the GPU's measurements at toy size on this CPU, to see that they work
	@OMP_NUM_THREADS=1 $(PY) benchmarks/gpu.py --dry

clean: ## remove what was made, except runs/
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	@find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
