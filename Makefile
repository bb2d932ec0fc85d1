# What one does with a checkout. Needs only make and a Python from 3.11 on; all else lives in .venv.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VENV := .venv
BIN := $(VENV)/bin
# Processes of the test run.
JOBS ?= 2
# More arguments for pytest or the benchmarks: make test ARGS="-k watch", make bench ARGS="--only create".
ARGS ?=

.PHONY: help
help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: $(VENV)/.dev ## Makes .venv with Kapell and all tools of development

.PHONY: run
run: $(VENV)/.runtime ## Starts the server with the demo; Ctrl-C stops everything
	@exec $(BIN)/kapell up --demo

.PHONY: test
test: $(VENV)/.dev ## Style, then every test that is not slow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

.PHONY: test-slow
test-slow: $(VENV)/.dev ## The tests that take minutes, crash tests among them
	$(BIN)/python -m pytest -m slow $(ARGS)

.PHONY: agents
agents: $(VENV)/.python ## Coding agents for tests/agents into .venv/agents, about 1.5 GB
	npm install --prefix $(VENV)/agents --no-audit --no-fund --no-save \
	  @openai/codex@0.169.0 @anthropic-ai/claude-code@2.1.197 @google/gemini-cli@0.61.0 opencode-ai@1.18.33 \
	  @qwen-code/qwen-code@0.24.4
	$(BIN)/python -m venv $(VENV)/agents/aider
	$(VENV)/agents/aider/bin/pip install --quiet --disable-pip-version-check aider-chat==0.86.2
	$(BIN)/python -m venv $(VENV)/agents/mini
	# Later versions of litellm want modules that they do not install.
	$(VENV)/agents/mini/bin/pip install --quiet --disable-pip-version-check mini-swe-agent==2.4.6 litellm==1.81.10

.PHONY: coverage
coverage: $(VENV)/.dev ## Branch coverage of the core, which must not fall below 90 %
	$(BIN)/python -m pytest -q -n $(JOBS) tests/domain tests/engine tests/store tests/watch \
	  $(foreach room,domain engine store watch,--cov=kapell_server.$(room)) \
	  --cov-branch --cov-fail-under=90 --cov-report=term:skip-covered $(ARGS)

.PHONY: bench
bench: $(VENV)/.dev ## Speed as ratios against floors measured in the same run
	$(BIN)/python -m tests.bench $(ARGS)

.PHONY: lint
lint: $(VENV)/.dev ## Style, types and the API's rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy server/kapell_server client/python/kapell
	$(BIN)/buf lint

.PHONY: gen
gen: $(VENV)/.dev ## Regenerates the committed stubs from the protos
	PYTHON=$(BIN)/python proto/gen.sh
	$(BIN)/python -m kapell_server.rpc.access_table server/docs/reference/access.md

.PHONY: breaking
breaking: $(VENV)/.dev ## Checks the API against the last released tag
	@tag=$$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || true); \
	if [ -z "$$tag" ]; then \
	  echo "skipped: no release tag (v*) yet, so nothing can be broken"; \
	else \
	  echo "buf breaking against $$tag"; \
	  $(BIN)/buf breaking --against ".git#tag=$$tag"; \
	fi

$(VENV)/.python:
	@for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
	  echo "Kapell needs Python 3.11 or newer; none was found on PATH. Install one and run make again." >&2; exit 1; \
	fi; \
	"$$found" -m venv $(VENV) || { \
	  echo "$$found could not make $(VENV); on Debian and Ubuntu install the package python3-venv." >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.runtime: $(VENV)/.python pyproject.toml
	@echo "Installing Kapell into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "Installing the tools of development into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@
