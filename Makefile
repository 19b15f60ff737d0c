# Everything happens in .venv, from the exact versions in requirements/. A fresh machine needs python3 >= 3.11 with pip, a C
# compiler and make; no target needs root. Start with `make demo` or `make test`: they do their own set-up.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
ARGS ?=

# One stamp per lock file: a target installs what it needs, once, and again only when the lock changed.
STAMP_VENV := $(VENV)/.made
STAMP_RUN := $(VENV)/.run
STAMP_DEV := $(VENV)/.dev
STAMP_DEMO := $(VENV)/.demo
STAMP_BENCH := $(VENV)/.bench

.DELETE_ON_ERROR:
.PHONY: help setup test demo bench lint format types imports check clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP_RUN) $(STAMP_DEV) $(STAMP_DEMO) ## .venv with everything that tests and demo need

# Four files at a time, for tests wait about as long as they compute: on two cores 10 minutes, where two at a time took 13. As they
# lie: sorted by their number of tests, files of few long ones would come last, and processes would wait for one.
test: setup ## all tests, four files at a time (ARGS="tests/config -k sizes" for some)
	$(BIN)/python -m pytest $(or $(ARGS),--numprocesses 4 --dist loadfile --no-loadscope-reorder)

demo: $(STAMP_RUN) $(STAMP_DEMO) ## train into an embedded volume, break it, lose nothing
	$(BIN)/python -m bench.demo $(ARGS)

BENCHMARKS := mount erasure checkpoint compression ranks dropins s3 nodes datasets datasets_tier

bench: $(STAMP_RUN) $(STAMP_DEMO) $(STAMP_BENCH) ## speed of everything against what lies below it and what one would use instead (hours)
	@set -e; for name in $(BENCHMARKS); do echo "== bench.$$name"; $(BIN)/python -m bench.$$name; done

lint: $(STAMP_DEV) ## ruff: rules and layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP_DEV) ## let ruff lay the code out
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(STAMP_RUN) $(STAMP_DEV) $(STAMP_DEMO) ## mypy --strict
	$(BIN)/mypy

imports: $(STAMP_RUN) $(STAMP_DEV) ## the arrows between the parts
	$(BIN)/lint-imports

check: lint types imports test ## all of the above, as CI does

clean: ## remove .venv, caches and outputs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist demo-output ./*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP_VENV):
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "make: no '$(PYTHON)' here; install Python 3.11 or newer (Debian: apt install python3 python3-pip python3-venv)," \
		"or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $$($(PYTHON) -V 2>&1) is too old: TieredFS needs" \
		"Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv' 2>/dev/null || { echo "make: this Python has no 'venv' module (Debian: apt install python3-venv)" >&2; exit 1; }
	rm -rf $(VENV)
	@# Debian splits ensurepip off into python3-venv; with pip alone, pip can put itself into an empty environment.
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		$(PYTHON) -m venv $(VENV); \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
		$(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --disable-pip-version-check --python $(BIN)/python install --quiet pip; \
	else \
		echo "make: this Python has neither 'ensurepip' nor 'pip' (Debian: apt install python3-venv python3-pip)" >&2; exit 1; \
	fi
	@touch $@

$(STAMP_RUN): requirements/run.txt requirements/portable.txt pyproject.toml | $(STAMP_VENV)
	$(PIP) -r requirements/run.txt
	@$(PIP) -r requirements/portable.txt 2>$(VENV)/portable.log || echo "make: fuse-python has no wheel for this Python and could not be built" \
		"($(VENV)/portable.log): --driver fuse-python will not work; the kernel driver will. To build it: apt install libfuse-dev pkg-config" >&2
	PYTHONWARNINGS=ignore $(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(STAMP_DEV): requirements/gateway.txt requirements/cluster.txt requirements/dev.txt $(STAMP_RUN)
	$(PIP) -r requirements/run.txt -r requirements/gateway.txt -r requirements/cluster.txt -r requirements/dev.txt
	@touch $@

$(STAMP_DEMO): requirements/gateway.txt requirements/demo.txt $(STAMP_RUN)
	$(PIP) -r requirements/run.txt -r requirements/gateway.txt -r requirements/demo.txt
	@touch $@

$(STAMP_BENCH): requirements/gateway.txt requirements/bench.txt $(STAMP_DEMO)
	$(PIP) -r requirements/gateway.txt -r requirements/bench.txt
	@touch $@
