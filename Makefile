# `make tune` and `make test` install everything they need into .venv first.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install tune test lint lock peers clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

install: .venv/.installed ## the locked packages, into .venv

.venv/.installed: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	touch $@

tune: install ## find the fastest n, N, M for reach-v3 on this machine
	$(BIN)/python tune_throughput.py --env reach-v3

test: install lint ## lint, then every test
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lock: install ## write requirements.lock from what .venv holds
	$(BIN)/python -m pip freeze | sort --ignore-case > requirements.lock

peers: .venv-peers/.installed ## the learners that bench.learner compares ours with, into .venv-peers

.venv-peers/.installed: bench/peers-requirements.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement bench/peers-requirements.txt
	touch $@

clean: ## remove .venv, .venv-peers and caches
	rm -rf .venv .venv-peers .pytest_cache .ruff_cache
