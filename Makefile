# Every target sets up what it needs: .venv from the exact versions in requirements.txt.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONUNBUFFERED := 1
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-fast lint types check wheel lock clean

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedemb needs Python 3.11 or newer, got " + sys.version.split()[0] + "; set PYTHON=")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch .venv/installed

demo: .venv/installed  ## federated hyperbolic embedding of WordNet's mammals
	@$(BIN)/python -m fedemb train

test: .venv/installed  ## all tests
	@$(BIN)/python -m pytest --quiet --durations=10 --numprocesses=auto --dist=worksteal

test-fast: .venv/installed  ## without the slow ones
	@$(BIN)/python -m pytest --quiet --numprocesses=auto -m "not slow"

lint: .venv/installed  ## style and types
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy

wheel: .venv/installed  ## the built wheel works in an empty folder
	@$(BIN)/python -m pytest --quiet tests/test_wheel.py

check: lint test  ## everything

lock:  ## requirements.txt from the ranges in pyproject.toml, in a new environment
	@rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/python -m pip install --quiet torch==2.13.0
	@.venv-lock/bin/python -m pip install --quiet --editable '.[dev]' editables
	@(sed -n '/^#/p' requirements.txt; .venv-lock/bin/python -m pip freeze --exclude-editable \
		| sed 's/^torch==.*/torch==2.13.0/' | sort -f) > requirements.new
	@mv requirements.new requirements.txt && rm -rf .venv-lock

clean:
	@rm -rf .venv .mypy_cache .ruff_cache dist build
