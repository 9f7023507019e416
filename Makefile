# `make` lists the targets. Each sets up what it needs, and does nothing twice.

PYTHON ?= python3
# Installed first and exactly, so that a machine whose pip knows a CPU build of it gets that one.
TORCH ?= 2.13.0
DIFFUSERS ?= 0.36.0 0.37.1 0.38.0 0.39.0 0.40.0 0.41.0
DEMO_PROMPT ?= a red star moving left on a striped background
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# -qq: errors only, as warnings of pip about a machine's indexes are no news to who runs make. --no-compile: torch and
# transformers have thousands of files that are never imported; those that are get compiled then.
PIP = $(BIN)/python -m pip install -qq --no-compile
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
SOURCES := packages experiments tests scripts conftest.py
REPORTED = $(wildcard docs/results/peers_*.jsonl docs/results/ablation*.jsonl docs/results/paper*.jsonl)

# What is imported must be compiled but once: without this a shell that forbids it pays half a minute in every process.
unexport PYTHONDONTWRITEBYTECODE

# One thread each: two test processes on two cores would otherwise ask for four.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup setup-dev demo test quick golden check format-check lint types format train train-latte train-film bench models versions targets transfer prior \
	film peers seconds parts parts-others report few-steps impact overhead slices constants schedules figures wheels wheels-check clean

help: ## list these
	@awk -F ':.*## ' '/^# --- / { print "\n" substr($$0, 7) ":" } /^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- use

demo: $(READY) ## make one video with and without UniCP, side by side, into demo/
	@mkdir -p demo
	$(BIN)/unicp compare "$(DEMO_PROMPT)" --out demo/compare.mp4
	@echo "The two videos side by side: $(CURDIR)/demo/compare.mp4"

test: check ## set up, check, and run the whole suite
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

# --- develop

# What runs pipelines, processes or many cases stays out: `make test` has it.
QUICK := packages/unicp/tests/unit tests/test_layering.py tests/test_ownership.py tests/test_ratchets.py
QUICK_WITHOUT := $(addprefix --ignore=packages/unicp/tests/unit/,cli test_session.py planning/test_builtin.py models/test_families.py)

quick: $(READY_DEV) ## run unit tests, the import rules and the recorded runs of two models: under a minute on one core
	$(TEST_ENV) $(BIN)/python -m pytest -q -m "not slow" $(QUICK) $(QUICK_WITHOUT) $(PYTEST_ARGS)
	$(TEST_ENV) $(BIN)/python -m pytest -q -m "not slow" packages/unicp/tests/golden -k "wan or latte" $(PYTEST_ARGS)

golden: $(READY_DEV) ## rewrite the recorded runs in packages/unicp/tests/golden, after a change that is meant to change them
	$(TEST_ENV) PYTHONPATH=packages/unicp $(BIN)/python -m tests.golden.make

check: format-check lint types ## formatter, linter and type checker, changing nothing

format-check: $(READY_DEV)
	$(BIN)/ruff format --check $(SOURCES)

lint: $(READY_DEV)
	$(BIN)/ruff check $(SOURCES)

types: $(READY_DEV)
	$(BIN)/basedpyright --warnings --pythonpath $(BIN)/python

format: $(READY_DEV) ## rewrite the sources as the formatter and the linter want them
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# --- train and measure (each says how long; those that continue can be stopped)

train: $(READY) ## train the test-bed glyphs from nothing (hours; continues)
	$(BIN)/python -m unicp_testbeds.training --out build/testbed

train-latte: $(READY) ## train the test-bed latte, on the same clips (hours; continues)
	$(BIN)/python -m unicp_testbeds.latte --out build/latte

train-film: $(READY) ## train the test-bed film, a CogVideoX pipeline on a real film, which it fetches (hours; continues)
	$(BIN)/python -m unicp_testbeds.film --out build/film

bench: $(READY_DEV) ## measure presets, fixed windows and fewer steps on glyphs (a quarter of an hour; continues)
	for sampler in unipc euler; do OMP_NUM_THREADS=1 $(BIN)/unicp bench presets --sampler $$sampler --frames 9 --prompts 12 \
	    --seeds 1 --fast-metrics --out docs/results/presets.jsonl || exit 1; done
	$(BIN)/python -m unicp_bench.report

models: $(READY_DEV) ## test every model and pipeline, and write what was found into docs/models.md
	$(TEST_ENV) $(BIN)/python -m pytest packages/unicp/tests/families packages/unicp/tests/pipelines -n 2 -q --write-matrix docs/results/models.json
	$(BIN)/python -m unicp_bench.models_table

# Each version lies in a folder of its own, put before the installed one; older ones need an older hub client beside them.
versions: $(READY_DEV) ## try older versions of diffusers, and write what was found into docs/models.md
	for version in $(DIFFUSERS); do \
	    $(PIP) --no-deps --target build/diffusers/$$version diffusers==$$version || exit 1; \
	    $(PIP) --target build/diffusers/hub "huggingface_hub<2" httpx importlib_metadata || exit 1; \
	    $(TEST_ENV) PYTHONPATH=build/diffusers/$$version:build/diffusers/hub $(BIN)/python -m pytest \
	        packages/unicp/tests/families/test_contract.py -q -k tolerance_zero --write-version docs/results/models.json; \
	done
	$(BIN)/python -m unicp_bench.models_table

# A profile of each kind, and clips on prompts that neither was made with.
PROMISED := --split tuning --prompts 12 --seeds 1 --fast-metrics --method "target psnr>=25" --method "target psnr>=30" \
    --method "target psnr>=35" --method "target psnr>=40"

targets: $(READY_DEV) ## measure how often targets such as psnr>=35 are met (a quarter of an hour)
	mkdir -p build/profiles
	for model in letters stickers glyphs; do for kind in quick thorough; do \
	    frames=$$([ $$model = glyphs ] && echo --frames 9); thorough=$$([ $$kind = thorough ] && echo --thorough); \
	    $(BIN)/unicp calibrate $$model $$frames $$thorough --out build/profiles/$$model-$$kind.json || exit 1; \
	    $(BIN)/unicp bench presets --model $$model $$frames --profile build/profiles/$$model-$$kind.json \
	        --out docs/results/targets_$${model}_$$kind.jsonl $(PROMISED) || exit 1; done; done
	$(BIN)/python -m unicp_bench.report

transfer: $(READY_DEV) ## measure UniCP beside peers on test-beds that are left out of what it learnt (hours; continues)
	for model in letters:default letters:unipc stickers:default stickers:unipc stickers:dpm; do OMP_NUM_THREADS=1 \
	    $(BIN)/unicp bench transfer --model $${model%:*} --sampler $${model#*:} --fast-metrics \
	    --out docs/results/transfer.jsonl || exit 1; done
	for sampler in default euler; do OMP_NUM_THREADS=1 $(BIN)/unicp bench transfer --frames 9 --sampler $$sampler \
	    --fast-metrics --out docs/results/transfer.jsonl || exit 1; done
	OMP_NUM_THREADS=1 $(BIN)/unicp bench transfer --model ripples --prompts 4 --fast-metrics \
	    --out docs/results/transfer.jsonl
	$(BIN)/python -m unicp_bench.report

prior: $(READY_DEV) ## record the built-in products on the test-beds anew (a quarter of an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.prior

film: $(READY_DEV) ## measure presets, targets, fixed windows and fewer steps on film (hours; continues)
	OMP_NUM_THREADS=1 $(BIN)/unicp bench presets --model film --prompts 4 --seeds 1 --out docs/results/film_presets.jsonl --method quality \
	    --method balanced --method fast --method "target psnr>=35" --method "target speedup>=2" --method "fixed window 2" \
	    --method "fixed window 3" --method "fewer steps 15" --method "fewer steps 10"
	$(BIN)/python -m unicp_bench.report

peers: $(READY_DEV) ## measure caches of diffusers and cache-dit beside UniCP on the test-beds (hours; continues)
	OMP_NUM_THREADS=1 $(BIN)/unicp bench rivals --prompts 12 --frames 9 --fast-metrics --out docs/results/peers_short.jsonl
	OMP_NUM_THREADS=1 $(BIN)/unicp bench rivals --sampler euler --prompts 8 --frames 9 --fast-metrics \
	    --out docs/results/peers_short.jsonl
	OMP_NUM_THREADS=1 $(BIN)/unicp bench leaders --out docs/results/peers_long.jsonl
	OMP_NUM_THREADS=1 $(BIN)/unicp bench rivals --model film --prompts 2 --out docs/results/peers_film.jsonl
	OMP_NUM_THREADS=1 $(BIN)/unicp bench rivals --model latte --prompts 6 --out docs/results/peers_latte.jsonl
	$(BIN)/python -m unicp_bench.report

seconds: $(READY_DEV) ## measure seconds at about half the compute, each run right after a plain run of its own
	OMP_NUM_THREADS=1 $(BIN)/unicp bench seconds --frames 9 --fast-metrics --out docs/results/seconds_glyphs.jsonl
	for model in latte film; do OMP_NUM_THREADS=1 $(BIN)/unicp bench seconds --model $$model --fast-metrics \
	    --out docs/results/seconds_$$model.jsonl || exit 1; done
	$(BIN)/python -m unicp_bench.report

parts: $(READY_DEV) ## measure the parts of the method and the paper's claims, on short clips of glyphs (hours; continues)
	for suite in ablation paper; do OMP_NUM_THREADS=1 $(BIN)/unicp bench $$suite --prompts 8 --seeds 1 --frames 9 --fast-metrics \
	    --out docs/results/$$suite.jsonl || exit 1; done
	for sampler in default euler; do OMP_NUM_THREADS=1 $(BIN)/unicp bench presets --split tuning --prompts 10 --seeds 1 --frames 9 \
	    --fast-metrics --sampler $$sampler --out docs/results/weighting.jsonl \
	    --method 'balanced {"tolerance": 0.02}' --method 'balanced {"tolerance": 0.02, "weighting": "uniform"}' \
	    --method 'balanced {"tolerance": 0.05}' --method 'balanced {"tolerance": 0.05, "weighting": "uniform"}' \
	    --method 'balanced {"tolerance": 0.1}' --method 'balanced {"tolerance": 0.1, "weighting": "uniform"}' \
	    --method 'balanced {"tolerance": 0.2}' --method 'balanced {"tolerance": 0.2, "weighting": "uniform"}' \
	    --method 'balanced {"tolerance": 0.4}' --method 'balanced {"tolerance": 0.4, "weighting": "uniform"}' \
	    --method 'balanced {"tolerance": 0.9}' --method 'balanced {"tolerance": 0.9, "weighting": "uniform"}' || exit 1; done
	for sampler in default euler; do OMP_NUM_THREADS=1 $(BIN)/unicp bench presets --prompts 8 --seeds 1 --frames 9 --fast-metrics \
	    --sampler $$sampler --out docs/results/damping.jsonl \
	    --method 'balanced {"tolerance": 0.4}' --method 'balanced {"tolerance": 0.4, "damping": false}' \
	    --method 'balanced {"tolerance": 1000, "max_window": 8}' --method 'balanced {"tolerance": 1000, "max_window": 8, "damping": false}' \
	    --method 'balanced {"tolerance": 1000, "max_window": 8, "max_reach": 1.5}' --method 'balanced {"tolerance": 1000, "max_window": 8, "max_reach": 1.5, "damping": false}' \
	    --method 'balanced {"tolerance": 1000, "max_window": 8, "max_reach": 2}' --method 'balanced {"tolerance": 1000, "max_window": 8, "max_reach": 2, "damping": false}' || exit 1; done
	$(BIN)/python -m unicp_bench.report

parts-others: $(READY_DEV) ## measure the same on latte and film, on a few prompts (hours; continues)
	for suite in ablation paper; do \
	    OMP_NUM_THREADS=1 $(BIN)/unicp bench $$suite --model latte --prompts 3 --seeds 1 --fast-metrics \
	        --out docs/results/$${suite}_latte.jsonl || exit 1; \
	    OMP_NUM_THREADS=1 $(BIN)/unicp bench $$suite --model film --prompts 2 --seeds 1 --fast-metrics \
	        --out docs/results/$${suite}_film.jsonl || exit 1; done
	$(BIN)/python -m unicp_bench.report

report: $(READY_DEV) ## write the measured rows of peers, parts and the paper's claims as one HTML file
	$(BIN)/unicp report $(REPORTED) --attention docs/results/attention_change.json --out docs/results/report.html

few-steps: $(READY_DEV) ## measure slices beside caches in runs of only 4, 6 and 8 steps (hours; continues)
	for steps in 4 6 8; do OMP_NUM_THREADS=1 $(BIN)/unicp bench slices --steps $$steps --prompts 4 --fast-metrics \
	    --out docs/results/slices_$$steps.jsonl || exit 1; done
	for steps in 4 6 8; do for model in latte film; do OMP_NUM_THREADS=1 $(BIN)/unicp bench slices --model $$model \
	    --steps $$steps --prompts 2 --fast-metrics --out docs/results/slices_$${model}_$$steps.jsonl || exit 1; done; done
	$(BIN)/python -m unicp_bench.report

impact: $(READY_DEV) ## measure what an error at each noise level does to the final latent
	$(BIN)/python -m experiments.impact --prompts 3 --sampler unipc --out docs/results/impact_unipc.json
	$(BIN)/python -m experiments.impact --prompts 3 --sampler euler --out docs/results/impact_euler.json

overhead: $(READY_DEV) ## measure what deciding and recording cost
	$(BIN)/unicp bench overhead --out docs/results/overhead.json

slices: $(READY_DEV) ## measure what attention at reduced width misses, and how much faster it is
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.slice_errors --out docs/results/slices.json
	for model in latte film; do OMP_NUM_THREADS=1 $(BIN)/python -m experiments.slice_errors --model $$model \
	    --out docs/results/slices_$$model.json || exit 1; done
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.slice_speed --repeats 9 --out docs/results/slice_speed.json
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.folded_weights --out docs/results/folded_weights.json

schedules: $(READY_DEV) ## measure which steps should be full, on small test-beds (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.schedules --out docs/results/schedules.json

constants: $(READY_DEV) ## measure each constant of the online rule beside a smaller and a larger value (half an hour)
	for sampler in unipc euler; do OMP_NUM_THREADS=1 $(BIN)/python -m experiments.constants --sampler $$sampler \
	    --out docs/results/constants_$$sampler.json || exit 1; done

figures: $(READY_DEV) ## measure and draw the change of attention outputs over steps
	$(BIN)/python -m experiments.attention_change --sampler unipc --prompts 16 --seeds 2 --out docs/results/attention_change.json --figure docs/img/u_shape.png

# --- package

wheels: $(READY_DEV) ## build the three wheels into dist/, and check that the library's is small
	rm -rf dist
	for package in unicp unicp-bench unicp-testbeds; do \
	    $(BIN)/python -m build --wheel --no-isolation --outdir dist packages/$$package >/dev/null || exit 1; done
	$(BIN)/python scripts/wheel_sizes.py dist

wheels-check: wheels ## install the wheels into three fresh environments and use each (downloads torch thrice)
	PYTHON="$(PYTHON)" TORCH="$(TORCH)" scripts/check_wheels.sh dist build/wheels

# --- set up

setup: $(READY) ## make .venv with what a user needs
setup-dev: $(READY_DEV) ## make .venv with what a developer needs

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "asked: $(PYTHON); found: missing or older than 3.10; do: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "asked: a virtual environment; found: no venv module; do: apt install python3-venv"; exit 1; }

$(READY): packages/unicp/pyproject.toml packages/unicp-testbeds/pyproject.toml | $(BIN)/python
	@echo "Setting up $(VENV), once: torch, diffusers and what they need (a few minutes)"
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) "torch==$(TORCH)" \
		|| echo "no torch $(TORCH) for this Python: taking the one that pip finds"
	@$(PIP) -e "packages/unicp[cli]" -e packages/unicp-testbeds
	@touch $@

$(READY_DEV): packages/unicp-bench/pyproject.toml requirements-dev.txt $(READY)
	@echo "Setting up $(VENV), once: the tools of a developer"
	@$(PIP) -e "packages/unicp[cli]" -e packages/unicp-testbeds -e packages/unicp-bench -r requirements-dev.txt
	@touch $@

clean: ## remove .venv, build, demo and caches
	rm -rf $(VENV) build dist demo .pytest_cache .ruff_cache .hypothesis
