# Everything that a user or CI runs. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Tools that are built once and shared by all checkouts of this user.
export CLOUDHUB_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/cloudhub
# One more than the cores of CI: tests of real parts wait for a quarter of their time.
PYTEST_WORKERS ?= 3
MINUTES ?= 5
SECONDS ?= 60
TARGET ?=

.DEFAULT_GOAL := help
.PHONY: help demo demo-ha chaos fuzz soak conformance metered test check format bench bench-100k bench-1m bench-linear wheel agent agent-check deps-ci clean

help:
	@echo "make demo      an embedded hub, two agents, the examples; ARGS=--once exits after the report"
	@echo "make demo-ha   the same on three etcd members, two NATS servers and three replicas; ARGS=--once"
	@echo "make test      every test; needs what deps-ci installs"
	@echo "make check     format, lint, types, import layers, JavaScript; writes nothing"
	@echo "make format    formats the code"
	@echo "make bench     measures; one JSON object per line"
	@echo "make bench-100k    100,000 nodes, 1,000,000 pods on this machine; goes on where it was cut off; NODES= PODS= SECONDS="
	@echo "make bench-1m      a million nodes' sessions in memory, replica by replica; NODES= PODS= SECONDS= SHARES="
	@echo "make bench-linear  does cost grow as the fleet does: a plot; SIZES=1000,3000"
	@echo "make chaos     kills and freezes replicas, etcd and NATS under a load; SEED=... MINUTES=5"
	@echo "make fuzz       coverage-guided, every target at once; SECONDS=60 TARGET=..."
	@echo "make soak      the long tests in full; writes reports/"
	@echo "make conformance  the agent's one list of scenarios on every platform; ARGS=\"--platform Board --short\""
	@echo "make metered   what an idle node costs on the wire, in memory and processor time; MINUTES=5"
	@echo "make wheel     dist/cloudhub-*.whl: hub and agent; the agent needs nothing else"
	@echo "make agent     the agent's packages in dist/agent: archive, Linux, Windows, macOS, boards; ARGS=--help"
	@echo "make agent-check  builds them twice, compares, and runs what can be run here; needs what deps-ci installs"
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
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[hub,otel,test]'
	@touch $@

demo: $(VENV)/hub.stamp
	@$(BIN)/python examples/demo.py $(ARGS)

demo-ha: $(VENV)/test.stamp
	@$(BIN)/python examples/demo_ha.py $(ARGS)

chaos: $(VENV)/test.stamp
	@$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) --minutes $(MINUTES) $(ARGS)

fuzz: $(VENV)/test.stamp
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(TARGET)

soak: $(VENV)/test.stamp
	@$(BIN)/python -m tests.soak $(ARGS)

conformance: $(VENV)/test.stamp
	@$(BIN)/python -m tests.conformance $(ARGS)

metered: $(VENV)/test.stamp
	@$(BIN)/python -m tests.soak.idle --minutes $(MINUTES)

test: $(VENV)/test.stamp
	@$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal --durations=40 --durations-min=5 $(ARGS)

check: $(VENV)/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@command -v node >/dev/null || { echo "no node (make deps-ci has it): JavaScript is not checked"; exit 0; }; \
	for file in hub/fleet/static/*.js tests/conformance/*.mjs tests/micropython/*.mjs; do \
		node --input-type=module --check < $$file || { echo "$$file: see above" >&2; exit 1; }; \
	done

format: $(VENV)/test.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/test.stamp
	@$(BIN)/python -m tests.bench $(ARGS)

# SECONDS has a default for `fuzz`: only one that is given counts here.
scale_args = $(if $(NODES),--nodes $(NODES)) $(if $(PODS),--pods $(PODS)) $(if $(filter command environment,$(origin SECONDS)),--seconds $(SECONDS))

bench-100k: $(VENV)/test.stamp
	@$(BIN)/python -m tests.scale.fleet $(scale_args) $(ARGS)

bench-1m: $(VENV)/test.stamp
	@$(BIN)/python -m tests.scale.share $(scale_args) $(if $(SHARES),--shares $(SHARES)) $(ARGS)

bench-linear: $(VENV)/test.stamp
	@$(BIN)/python -m tests.scale.linear $(if $(SIZES),--sizes $(SIZES)) $(ARGS)

wheel: $(VENV)/hub.stamp
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist/*.whl

$(VENV)/agent.stamp: $(VENV)/hub.stamp .ci/constraints.txt
	@echo "installing the agent extra into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[agent]'
	@touch $@

agent: $(VENV)/agent.stamp
	@$(BIN)/python -m edgelite.release $(ARGS)

agent-check: $(VENV)/agent.stamp $(VENV)/test.stamp
	@$(BIN)/python -m pytest edgelite/release/checks $(ARGS)

deps-ci:
	.ci/deps

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
