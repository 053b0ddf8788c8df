# Two commands, each of which sets up everything it needs first:
#   make align    align the packaged model on the packaged preferences, and write the report
#   make test     lint, types, tests
# and make bench: a training step beside TRL and a plain loop (HH=train.jsonl.gz BENCH="--only hh"; benchmarks/step)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
PEERS := .bench/peers
BENCH ?=
HH ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup align test lint docs bench clean

help:
	@sed -n '1,5s/^# \{0,1\}//p' Makefile

setup: $(STAMP)

align: $(STAMP)
	$(BIN)/druthers align

test: lint
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src

docs: $(STAMP)
	$(BIN)/python scripts/settings_page.py
	$(BIN)/python scripts/advice_page.py
	$(BIN)/python scripts/losses_page.py

bench: $(STAMP) $(PEERS)/.installed
	$(BIN)/python benchmarks/step/bench.py --peers $(PEERS)/bin/python $(if $(HH),--hh $(HH)) $(BENCH)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

# --no-deps: see docs/decisions/0001. --no-compile: byte code of what is never imported would cost more than it saves.
# Where the index serves a torch that needs more packages (CUDA builds do), the third line of pip brings them.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "druthers needs Python 3.11 or later, and $(PYTHON) is " + sys.version.split()[0] + "; run make PYTHON=python3.12")'
	@echo "Setting up $(VENV) (once; a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --no-compile --no-deps --requirement requirements.lock
	@$(PIP) install --quiet --no-compile --no-deps --no-build-isolation --editable .
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install --quiet --no-compile "$$(grep '^torch==' requirements.lock)"
	@touch $@

# The peers have an environment of their own, made once; `make clean` leaves it.
$(PEERS)/.installed: benchmarks/step/requirements.txt
	@echo "Setting up $(PEERS) (once; a minute or two)"
	@$(PYTHON) -m venv --clear $(PEERS)
	@$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile --no-deps --requirement $<
	@$(PEERS)/bin/python -c 'import torch' 2>/dev/null || $(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile "$$(grep '^torch==' $<)"
	@touch $@
