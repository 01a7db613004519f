# Everything that a user or CI runs. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Tools that are built once and shared by all checkouts of this user.
export CLOUDHUB_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/cloudhub
PYTEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench wheel deps-ci clean

help:
	@echo "make demo      an embedded hub, two agents, the examples; ARGS=--once exits after the report"
	@echo "make test      every test; needs what deps-ci installs"
	@echo "make check     format, lint, types, import layers; writes nothing"
	@echo "make format    formats the code"
	@echo "make bench     measures; one JSON object per line"
	@echo "make wheel     dist/cloudhub-*.whl: hub and agent; the agent needs nothing else"
	@echo "make deps-ci   installs what the tests need beyond PyPI (root, Debian)"

$(VENV)/hub.stamp: pyproject.toml
	@$(PYTHON) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer with venv is needed (on Debian: apt install python3-venv); set PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || { echo "making a virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing cloudhub[hub] into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[hub]'
	@touch $@

$(VENV)/test.stamp: $(VENV)/hub.stamp .ci/constraints.txt
	@echo "installing the test extra into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[hub,test]'
	@touch $@

demo: $(VENV)/hub.stamp
	@$(BIN)/python examples/demo.py $(ARGS)

test: $(VENV)/test.stamp
	@$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal $(ARGS)

check: $(VENV)/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/test.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/test.stamp
	@$(BIN)/python -m tests.bench $(ARGS)

wheel: $(VENV)/hub.stamp
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist/*.whl

deps-ci:
	.ci/deps

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
