# Two commands do all the set-up: `make demo` and `make test`. Another Python: `make test PYTHON=python3.13`.
PYTHON ?= python3
WORKDIR ?= runs/digits_quickstart
# The installation is the plain one: `make demo JAX_PLATFORMS=tpu` for another that you put into the environment.
JAX_PLATFORMS ?= cpu
TESTS ?=
PYTEST_FLAGS ?= -n 2 --dist worksteal
# The suite compiles with as little optimization as XLA can; what is marked `exact` runs by itself, with XLA's defaults.
EXACT ?= --xla_backend_optimization_level=3 --xla_llvm_disable_expensive_passes=false
SLOW_FLAGS ?=

VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin

# Prints the interpreter: PYTHON, or pyenv's copy of that version where PYTHON is a shim that doesn't run.
USABLE := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))
FIND_PYTHON = for python in "$(PYTHON)" "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$(PYTHON:python%=%)[.-]*/bin/$(PYTHON); do \
	"$$python" -c "$(USABLE)" >/dev/null 2>&1 && echo "$$python" && exit 0; done; \
	echo "PYTHON=$(PYTHON) cannot be used ($$("$(PYTHON)" --version 2>&1 | head -n 1)): Python 3.11 or newer that" \
	"runs and has venv and ensurepip is needed; pass PYTHON=/path/to/python3.11" >&2; exit 1

.PHONY: demo test test-all lint types pytest slow docs links which clean

# `test` includes `cli` and `docs`: where it is installed nothing more is.
demo: $(or $(wildcard $(VENV)/installed-test),$(VENV)/installed-cli)
	JAX_PLATFORMS=$(JAX_PLATFORMS) $(BIN)/python -m experiments.compress --config=configs/digits_quickstart.py --workdir=$(WORKDIR)

test: lint types pytest

test-all: test slow

lint: $(VENV)/installed-test
	$(BIN)/ruff check .

types: $(VENV)/installed-test
	$(BIN)/mypy

# Exit status 5 says that no test is marked so.
pytest: $(VENV)/installed-test
	$(BIN)/python -m pytest -m "not slow and not exact" $(PYTEST_FLAGS) $(TESTS)
	XLA_FLAGS="$$XLA_FLAGS $(EXACT)" $(BIN)/python -m pytest -m "exact and not slow" $(PYTEST_FLAGS) $(TESTS) || test $$? -eq 5

slow: $(VENV)/installed-test
	$(BIN)/python -m pytest -m "slow and not exact" $(SLOW_FLAGS) $(TESTS) || test $$? -eq 5
	XLA_FLAGS="$$XLA_FLAGS $(EXACT)" $(BIN)/python -m pytest -m "exact and slow" $(SLOW_FLAGS) $(TESTS) || test $$? -eq 5

# A warning is an error, and so is a reference that leads nowhere. Needs no network; `links` asks each external address.
docs: $(or $(wildcard $(VENV)/installed-test),$(VENV)/installed-docs)
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -q -W --keep-going -n -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

links: $(or $(wildcard $(VENV)/installed-test),$(VENV)/installed-docs)
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -q -b linkcheck docs docs/_build/links

which:
	@$(FIND_PYTHON)

clean:
	rm -rf .venv .venv-* runs build docs/_build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/installed-%: setup.cfg pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
	{ python=$$($(FIND_PYTHON)) && echo "$$python -m venv $(VENV)" && "$$python" -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@
