# Everything goes through .venv in this checkout. Needs python3 (3.10 to 3.13) and make; `make` alone lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
# Where to take torch from when the default index is not wanted, e.g. the CPU build:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
DEMO ?= examples/simple-adder
DEMO_TRAIN ?=
PYTEST_ARGS ?=
# Test files at a time (a file's tests stay together: they share what its fixtures made); much of a test's time is waiting.
WORKERS ?= 3
# COVERAGE=yes counts what the tests reach, and fails below the bound in pyproject.toml; it takes a quarter longer.
COVERAGE ?=

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
STAMP := .venv/.installed
SERVE_LOCK := src/platotk/templates/deploy/serve.lock
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.lock)

.PHONY: help install demo test test-all fmt check bench docs docs-pages lock browser clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s  %s\n", $$1, $$2 }' Makefile

install: $(STAMP) ## set up .venv with the versions of requirements.lock (quick when nothing changed)
	@true

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info[:2] < (3, 14); sys.exit(None if ok else f"$(PYTHON) is {sys.version.split()[0]}; platotk needs Python 3.10 to 3.13. Try: make install PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv; the first time takes some minutes."
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@if [ -n "$(TORCH_INDEX)" ]; then $(BIN)/python -m pip install --no-deps --index-url "$(TORCH_INDEX)" "$(TORCH)"; fi
	$(BIN)/python -m pip install --quiet -c requirements.lock -e ".[all,dev]"
	@touch $(STAMP)

demo: install ## check, train, assess and export the Simple Adder on this machine (under 5 minutes once installed)
	@echo "== 1/5  Is the simulator sound?"
	$(BIN)/plato check -C $(DEMO)
	@echo; echo "== 2/5  Train it"
	$(BIN)/plato train -C $(DEMO) $(DEMO_TRAIN)
	@echo; echo "== 3/5  How good is it? 100 episodes without exploration"
	$(BIN)/plato assess -C $(DEMO) --episodes 100
	@echo; echo "== 4/5  Export the agent: a folder that needs no Ray, proven equal"
	$(BIN)/plato export -C $(DEMO)
	@echo; echo "== 5/5  The agent acts: what to add when the value is 17 (the goal is 50, ten at most)"
	$(BIN)/plato act '{"value": 17}' -C $(DEMO)
	@echo
	@echo "The runs, newest first, each with its learning curve (a page that opens offline):"
	@$(BIN)/plato runs -C $(DEMO)
	@printf '%s\n' "" "Next, in a new shell, a project of your own:" "" \
	  "  . '$(CURDIR)/.venv/bin/activate'" \
	  "  mkdir -p ~/first-agent && cd ~/first-agent" \
	  "  plato init --from simple-adder" \
	  "  plato check" \
	  "  plato train" ""

test: install browser ## run the tests (COVERAGE=yes counts what they reach)
	$(PYTEST) $(if $(COVERAGE),--cov --cov-report=term) $(PYTEST_ARGS)

test-all: install browser ## the tests and the long ones (kills training at random moments, learns to solve), with coverage
	$(PYTEST) -m "slow or not slow" --cov --cov-report=term $(PYTEST_ARGS)

fmt: install ## format, and mend what can be mended by itself
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .

check: install ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

BENCHMARKS ?= startup kernel throughput peers sim_workers serving simple_adder learning
bench: install ## measure ourselves beside others, for an hour; BENCHMARKS="startup kernel" takes some
	@for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py; done

docs: docs-pages ## build the site into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

docs-pages: install ## write the generated pages anew
	@for script in docs/_scripts/*.py; do $(BIN)/python $$script; done

lock: install ## solve requirements.lock anew from pyproject.toml
	@$(BIN)/python -m pip install --quiet uv
	@head -n 2 requirements.lock > .venv/lock.tmp
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --all-extras --no-annotate --no-header --no-emit-index-url --no-emit-find-links --upgrade pyproject.toml >> .venv/lock.tmp
	@mv .venv/lock.tmp requirements.lock
	@head -n 1 $(SERVE_LOCK) > .venv/lock.tmp
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --extra serve --no-annotate --no-header --no-emit-index-url --no-emit-find-links --generate-hashes -c requirements.lock pyproject.toml >> .venv/lock.tmp
	@mv .venv/lock.tmp $(SERVE_LOCK)

browser: ## is there a Chromium for the test that looks at the learning curve?
	@for name in chromium chromium-browser google-chrome chrome; do command -v $$name >/dev/null && exit 0; done; \
	  echo "No Chromium found: the tests that look at a page in a browser will fail. On Debian: apt-get install chromium" >&2

clean: ## remove .venv and everything built
	rm -rf .venv site dist build .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis
