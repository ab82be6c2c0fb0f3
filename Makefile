# Each target does its own set-up in .venv; nothing has to be installed by hand.
#   make demo        a model answers from a million tokens of memory    (options: make demo ARGUMENTS="--tokens 64K")
#   make test        the tests that end within minutes                  (options: make test ARGUMENTS="-k golden")
#   make test-all    all tests
#   make check       formatting, lint, types, import layers
#   make clean       remove .venv and everything that was built

PYTHON ?= python3
ARGUMENTS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input

# Compiled once, and not by every process of the tests that has been told to keep nothing.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check format clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(STAMP)
	@$(BIN)/longfocus demo $(ARGUMENTS)

test: $(STAMP)
	@$(BIN)/pytest --numprocesses auto --maxprocesses 4 --quiet $(ARGUMENTS)

test-all: $(STAMP)
	@$(BIN)/pytest --numprocesses auto --maxprocesses 4 --quiet -m "long or not long" $(ARGUMENTS)

check: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyrefly check
	@$(BIN)/pytest --quiet --noconftest tests/test_layers.py

format: $(STAMP)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Touched last, so that an interrupted installation is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("LongFocus needs Python 3.11 or newer, and $(PYTHON) is %d.%d. Name a newer one: make PYTHON=python3.13 ..." % sys.version_info[:2])'
	@echo "Installing LongFocus into $(VENV) (the first time this takes minutes: PyTorch is large)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install "pip>=25.1"
	@$(PIP) install --constraint constraints.txt --editable ".[plot]" --group dev
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
