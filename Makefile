# Everything below works on a machine that has Python >= 3.10 with pip and venv, and nothing else.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install quickstart test test-slow style clean

help:  ## list these commands
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

# torch comes first and by version: whatever is installed after it finds it there.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet "$(TORCH)"
	$(BIN)/pip install --disable-pip-version-check --quiet --editable ".[test]"
	touch $@

install: $(VENV)/.installed  ## virtual environment with everything the other commands need

quickstart: install  ## fine-tune on the data set in the package, exit early, save, load it back
	$(BIN)/pfberxit quickstart

test: install  ## the tests that run in minutes
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

test-slow: install  ## the long ones as well
	$(BIN)/python -m pytest -m "slow or not slow"

style: install  ## sort imports, format, mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info
