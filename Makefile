# `make tune` and `make test` install everything they need into .venv first.
PYTHON ?= python3
BIN := .venv/bin

# No more than there are processors: workers that training starts make way for everything else. Files are begun
# in the order of tests/conftest.py, not by their numbers of tests.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

# Each of the many processes that the tests start would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install tune quick test optimised lint lock peers clean

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

quick: install ## the tests that start no process, for the inner loop
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test: install lint ## lint, then every test
	$(BIN)/python -m pytest $(PARALLEL)

optimised: install ## every test, with compiled code optimised as users run it
	JAX_DISABLE_MOST_OPTIMIZATIONS=false $(BIN)/python -m pytest $(PARALLEL)

lint: install ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: install ## write requirements.lock from what .venv holds
	$(BIN)/python -m pip freeze | sort --ignore-case > requirements.lock

peers: $(patsubst bench/peers/%.txt,.venv-peers/%/.installed,$(wildcard bench/peers/*.txt)) ## what bench.fps and bench.learner compare ours with, each into .venv-peers/NAME

# --no-deps, because the files are complete, and a peer's own pins may exclude what it works with. A peer that
# fails leaves the reason as the last line of install.log and does not stop the others.
.venv-peers/%/.installed: bench/peers/%.txt
	@echo "$*: installing"
	@rm -rf $(@D) && mkdir -p $(@D)
	@{ $(PYTHON) -m venv $(@D) \
	    && $(@D)/bin/python -m pip install --disable-pip-version-check --no-deps --requirement $< \
	    && $(@D)/bin/python -c "$$(sed -n 's/^# check: //p' $<)"; } > $(@D)/install.log 2>&1 \
	  && touch $@ \
	  || { grep -i 'error: ' $(@D)/install.log | grep -v 'subprocess-exited\|generation-failed' | tail -n 1 \
	      | sed 's/^ *//' >> $(@D)/install.log; echo "$*: not installed: $$(tail -n 1 $(@D)/install.log)"; }

clean: ## remove .venv, .venv-peers and caches
	rm -rf .venv .venv-peers .pytest_cache .ruff_cache .mypy_cache
