# Needs Python 3.11 or newer and make; everything else goes into .venv.
#   make demo PYTHON=python3.13     another Python
#   make setup TORCH=cpu            PyTorch without CUDA: 0.2 instead of 3 GB (first time only)
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
TORCH ?= default
RECORDING ?=
RECORDINGS ?=
SEEDS ?= 1 2 3

VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin/

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-learning test test-long check integration gpu bench bench-learner up replay seeds \
	shipped tails results named-recordings

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## install everything into .venv (PyTorch brings about 3 GB of CUDA libraries; TORCH=cpu leaves them out)

demo: $(READY)  ## the main job on this machine: embedded Kafka and Redis, a replay, alerts as they open
	@$(RUN)tidewatch demo

demo-learning: $(READY)  ## the slow loop: a family of streams changes, the shared weights follow; picture and rollback
	@$(RUN)python -m pipeline.demo.learning

test: $(READY)  ## every test, with a real Kafka and Redis (given by environment variable, else embedded)
	@$(RUN)python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: $(READY)  ## format, lint, types, quick tests; under a minute
	@$(RUN)ruff format --check .
	@$(RUN)ruff check .
	@$(RUN)mypy
	@$(RUN)python -m pytest -q -m "not integration and not slow and not gpu and not long"

integration: $(READY)  ## the tests that need a real Kafka or Redis
	@$(RUN)python -m pytest -m "integration and not gpu and not long"

test-long: $(READY)  ## the tests that take minutes
	@$(RUN)python -m pytest -m "long and not gpu"

gpu: $(READY)  ## the tests that need a CUDA device
	@$(RUN)python -m pytest -m gpu

bench: $(READY)  ## what this machine can do: engine, network, whole path
	@$(RUN)tidewatch bench --quick --json runs/bench.json

bench-learner: $(READY)  ## what a learner beside it costs the worker: throughput and latency
	@$(RUN)tidewatch bench --learner

up: $(READY)  ## a real Kafka and Redis on this machine until Ctrl-C
	@$(RUN)tidewatch servers

replay: $(READY)  ## replay a recording through the engine: make replay RECORDING=FILE
	@test -n "$(RECORDING)" || { echo "which recording? make replay RECORDING=FILE"; exit 2; }
	@$(RUN)tidewatch replay "$(RECORDING)" --to engine

named-recordings:
	@test -n "$(RECORDINGS)" || { echo "which recordings? make results RECORDINGS=FOLDER"; exit 2; }

WEIGHTS := $(SEEDS:%=runs/seeds/gru-%)
LEARNED_FROM := models/training.py models/calibration.py $(wildcard models/synthetic/*.py)

seeds: $(WEIGHTS:%=%/manifest.json)  ## the shipped predictor again from SEEDS (1 2 3): runs/seeds, minutes each

runs/seeds/gru-%/manifest.json: $(LEARNED_FROM) | $(READY)
	@$(RUN)tidewatch pretrain --cell gru --hidden 64 --seed $* --force --out $(@D)

SHIPPED := gru-64 lstm-64 gru-32

shipped: $(SHIPPED:%=runs/shipped/%/manifest.json)  ## the three shipped predictors again: runs/shipped, minutes each

runs/shipped/%/manifest.json: $(LEARNED_FROM) | $(READY)
	@$(RUN)tidewatch pretrain --cell $(word 1,$(subst -, ,$*)) --hidden $(word 2,$(subst -, ,$*)) --seed 1 --force --out $(@D)

tails: $(READY)  ## pooled tails of shipped predictors and seeds anew, after a change of evidence; half a minute each
	@for folder in $(dir $(wildcard models/weights/*/manifest.json runs/seeds/*/manifest.json)); do \
		$(RUN)tidewatch pretrain --tails --out $$folder || exit 1; done

results: named-recordings seeds  ## docs/results.md from labelled recordings, means over the seeds: make results RECORDINGS=FOLDER
	@$(RUN)tidewatch evaluate "$(RECORDINGS)" --predictor $(WEIGHTS) --json runs/results.json --report runs/results.html \
		--markdown docs/results.md

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it with PYTHON=..."; exit 2; }
	@test -x $(RUN)python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 2; }
	@echo "installing into $(VENV) (once; a few minutes, most of it PyTorch)"
	@$(UV) --version >/dev/null 2>&1 || $(RUN)python -m pip install --quiet --disable-pip-version-check uv \
		|| echo "no uv; going on with pip"
	@$(if $(filter cpu,$(TORCH)),$(UV) pip install --python $(RUN)python --torch-backend cpu $(shell grep ^torch== constraints.txt))
	@$(call INSTALL,-c constraints.txt -e '.[dev]')
	@touch $@

# uv installs PyTorch several times as fast as pip; where it cannot be had, pip does the same.
UV = PATH="$(CURDIR)/$(RUN):$$PATH" uv
INSTALL = $(UV) pip install --python $(RUN)python $(1) || $(RUN)python -m pip install $(1)
