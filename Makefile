# Every routine command. Each sets up .venv first, once; `make help` lists them.

VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 2
# The first interpreter that is new enough; name another with `make ... PYTHON=/path/to/python`.
PYTHON ?= $(or $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done),python3)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help compare test test-full lint format types index conformance docs bench wheel clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST) | awk -F': ' '{printf "make %-12s %s\n", $$1, $$2}'

compare: $(VENV)/.compare ## train, measure and judge convolutions; ARGS="--seeds 2" adds options
	$(BIN)/omniconv compare $(ARGS)

test: $(VENV)/.dev ## all tests but the slowest tier; ARGS="tests/test_x.py" selects
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-full: $(VENV)/.dev ## all tests
	OMNICONV_TIER=3 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: $(VENV)/.dev ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev ## bring the style in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev ## static types
	$(BIN)/mypy

index: $(VENV)/.dev ## regenerate the lists of names after adding an operator
	$(BIN)/python tools/generate_index.py

conformance: $(VENV)/.dev ## run the matrix and write docs/conformance.md; ARGS="--operators dcls"
	$(BIN)/python tools/generate_conformance.py $(ARGS)

docs: $(VENV)/.docs ## the site, in site/index.html
	$(BIN)/sphinx-build -q -W --keep-going -d build/doctrees docs site

bench: $(VENV)/.dev ## every speed that the documentation names
	$(BIN)/python benchmarks/run.py $(ARGS)

wheel: $(VENV)/.dev ## a wheel for this platform that holds compiled kernels, in dist/
	rm -rf build/kernels
	$(BIN)/python -m omniconv.kernels.build build/kernels
	OMNICONV_PREBUILT=$(abspath build/kernels) PIP_CONSTRAINT=constraints.txt \
		PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m build --wheel

clean: ## remove everything that is not committed but made here
	rm -rf $(VENV) build dist site omniconv-report .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; \
		sys.exit(f"omniconv needs Python 3.11 or newer, $(PYTHON) is {v}; \
	name another: make PYTHON=/path/to/python") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# An editable installation with the extra of the stamp's name. Both variables: pip 25.3 and later
# pin build environments by the second one only.
$(VENV)/.compare $(VENV)/.dev $(VENV)/.docs: $(VENV)/.%: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Setting up $(VENV) for '$*': about a minute, once."
	@PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
		$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[$*]'
	@touch $@
