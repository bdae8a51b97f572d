# The two commands of the README are `make run` and `make test`; the others are for whoever works on it.

PYTHON ?= python3
PORT ?= 8000
# Further options of the server, like ARGS="--host 0.0.0.0".
ARGS ?=
# Autobahn's cases, like CASES="12.* 13.*".
CASES ?=
# The long run that breaks things, like FAULTS="--clients 100 --seed 7".
FAULTS ?=
# Locust users of the stress run, and its further options, like STRESS="--hold 60 --spawn-rate 1000".
USERS ?= 80000
STRESS ?=
# How long the fuzzer searches.
SECONDS ?= 60
# Members of `make million`, at most.
MEMBERS ?= 1000000

VENV := .venv
BIN := $(VENV)/bin
# Tools call one another by name.
export PATH := $(CURDIR)/$(BIN):$(PATH)
STAMPS := .stamps

PACKAGE := setup.py pyproject.toml MANIFEST.in $(wildcard tornadochat/*.py tornadochat/*.pyx tornadochat/*.pxd tornadochat/*.pxi \
	tornadochat/*.pyi tornadochat/*.json tornadochat/scripts/*.lua)
CLIENT := $(shell find webapp/src webapp/public -type f 2>/dev/null) $(wildcard webapp/*.json webapp/*.ts webapp/*.html)

.PHONY: run test checks lint types webapp matrix conformance faults fuzz bench stress million storm growth clean

# Make everything ready and start the chat on an embedded store.
run: $(STAMPS)/installed
	exec $(BIN)/python -P -m tornadochat --port $(PORT) $(ARGS)

# Everything: the other runners first, pytest last, so that its closing line ends the output.
test: checks
	$(BIN)/python -P -bb -m pytest -q

checks: lint types webapp conformance

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"

$(STAMPS)/installed: $(BIN)/python $(PACKAGE) $(CLIENT) README.md
	@mkdir -p $(STAMPS)
	$(BIN)/python -m pip install --quiet .
	@touch $@

$(STAMPS)/tools: $(STAMPS)/installed pyproject.toml
	$(BIN)/python -m pip install --quiet ".[test,lint,bench]" "tox>=4.20,<5"
	@touch $@

lint: $(STAMPS)/tools
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/cython-lint tornadochat bench
	$(BIN)/codespell
	$(BIN)/lint-imports

types: $(STAMPS)/tools
	$(BIN)/mypy
	$(BIN)/stubtest tornadochat._fastframe tornadochat._reactor --mypy-config-file pyproject.toml --allowlist tests/stubtest-allowlist.txt

webapp: $(STAMPS)/installed
	cd webapp && npm run --silent check && npm test --silent

# Autobahn's own test suite; it needs CPython 2.7 for itself and is skipped, with the reason, without it.
conformance: $(STAMPS)/tools
	$(BIN)/python -P tests/conformance/run.py $(CASES)

# 500 clients talk for ten minutes or more while 200 faults are made; then a proof that nothing was lost.
faults: $(STAMPS)/tools
	$(BIN)/python -m tests.faults.driver $(FAULTS)

# Fuzz the frame codec; what is found is told at the end, and left in build/fuzz/found.
fuzz: $(STAMPS)/tools
	$(BIN)/tox -q -e fuzz -- --prove --seconds $(SECONDS)

# The test suite on every Python that is installed.
matrix: $(STAMPS)/tools
	$(BIN)/tox -e py311,py312,py313

bench: $(STAMPS)/tools
	$(BIN)/python -m bench.fanout
	$(BIN)/python -m bench.idle

# As many Locust users as that at once, everything counted; results in bench/results. Fails when anything was lost.
stress: $(STAMPS)/tools
	$(BIN)/python -m bench.stress --users $(USERS) $(STRESS)

# As many members as this machine holds; results are in bench/results.
million: $(STAMPS)/tools
	$(BIN)/python -m bench.million --members $(MEMBERS)

# Workers are killed, everybody comes back.
storm: $(STAMPS)/tools
	$(BIN)/python -m bench.storm

# What grows how fast, and what a million users need.
growth: $(STAMPS)/tools
	$(BIN)/python -m bench.growth

clean:
	rm -rf $(VENV) $(STAMPS) .tox build dist *.egg-info webapp/node_modules tornadochat/static tornadochat/*.so
