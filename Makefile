# `make run` and `make test` set everything up and do everything; see README.md.
# A notebook runs again only if it, the library, its parameters or a notebook before it changed.

PROFILE ?= laptop
# ENGINE=ray generates, scores and embeds on Ray: this machine, or the cluster of RAY_ADDRESS, with
# ACTOR_GPUS holding a model each. STORE=s3://... keeps there what is long work; see docs/cluster.md.
ifdef ENGINE
export SASA_ENGINE = $(ENGINE)
endif
ifdef ACTOR_GPUS
export SASA_ACTOR_GPUS = $(ACTOR_GPUS)
endif
ifdef STORE
export SASA_STORE = $(STORE)
endif
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
RUN := runs/$(PROFILE)
LIBRARY := $(shell find sasa_lib -name "*.py") $(wildcard data/*.jsonl data/*.safetensors)
NAMES := 00_start 01_embeddings 02_subspaces 03_boundary 04_generation 05_evaluation \
	06_bold 07_instruct 08_word_filter 09_cost 10_better_boundaries 11_budget \
	12_several_values 13_fronts
EXECUTED := $(NAMES:%=$(RUN)/%.ipynb)

.PHONY: run plan test smoke lint unit lab site sweep bench setup lock figures clean FORCE

run: $(EXECUTED)
	@$(BIN)/python scripts/notebooks.py report --profile $(PROFILE)

$(RUN)/%.ipynb: notebooks/%.ipynb $(RUN)/parameters/%.json $(LIBRARY) scripts/notebooks.py
	@$(BIN)/python scripts/notebooks.py execute $* --profile $(PROFILE)

$(RUN)/02_subspaces.ipynb: $(RUN)/01_embeddings.ipynb
$(RUN)/03_boundary.ipynb: $(RUN)/02_subspaces.ipynb
$(RUN)/04_generation.ipynb: $(RUN)/03_boundary.ipynb
$(RUN)/05_evaluation.ipynb: $(RUN)/04_generation.ipynb
$(RUN)/06_bold.ipynb: $(RUN)/05_evaluation.ipynb
$(RUN)/07_instruct.ipynb: $(RUN)/06_bold.ipynb
$(RUN)/08_word_filter.ipynb: $(RUN)/07_instruct.ipynb
$(RUN)/09_cost.ipynb: $(RUN)/08_word_filter.ipynb
$(RUN)/10_better_boundaries.ipynb: $(RUN)/09_cost.ipynb
$(RUN)/11_budget.ipynb: $(RUN)/10_better_boundaries.ipynb
$(RUN)/12_several_values.ipynb: $(RUN)/11_budget.ipynb

# 13 fits its own boundaries for its own models, so it needs no other notebook's results.

# Rewrites a notebook's parameters only where they differ, and refuses unknown ones.
$(NAMES:%=$(RUN)/parameters/%.json) &: FORCE | $(READY)
	@$(BIN)/python scripts/notebooks.py parameters --profile $(PROFILE) $(MAKEOVERRIDES)
FORCE:

# What a run needs and would cost, without weights: `make plan PROFILE=paper`; executes nothing.
plan: $(READY)
	@$(BIN)/python scripts/plan.py --profile $(PROFILE) $(MAKEOVERRIDES)

# One or several notebooks over a grid: `make sweep NOTEBOOK=05_evaluation BETA=0,1,3`, or GRID=grid.yaml.
sweep: $(READY)
	@$(BIN)/python scripts/sweep.py $(MAKEOVERRIDES)

# Tests and notebooks side by side, each on one thread: both are too small to gain from more.
test: lint $(VENV)/site-ready
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j2 unit smoke

smoke:
	@$(MAKE) --no-print-directory run PROFILE=smoke
	@$(MAKE) --no-print-directory site PROFILE=smoke
	@$(BIN)/python scripts/check_site.py runs/smoke/site/html --links

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

unit: $(READY)
	$(BIN)/python -m pytest

# As root, in a container, Jupyter asks to be told that this is meant.
lab: $(READY)
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_start.ipynb \
		$(if $(filter 0,$(shell id -u)),--allow-root)

# The executed notebooks, a glossary and the library's reference as pages that open without a network.
site: $(EXECUTED) $(VENV)/site-ready
	@$(BIN)/python scripts/build_site.py --profile $(PROFILE)

$(VENV)/site-ready: docs/requirements.txt $(READY)
	@$(BIN)/python -m pip install -qq --requirement requirements.txt --requirement docs/requirements.txt
	@touch $@

# What SASA costs against plain sampling; needs about an hour on two cores, and goes on where it stopped.
bench: $(READY)
	$(BIN)/python scripts/bench.py

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	@echo "installing the locked requirements into $(VENV) (2.5 GB), once, for some minutes ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --requirement requirements.txt
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@

# Resolve the requirements of pyproject.toml anew into requirements.txt and the pip section of environment.yml.
lock:
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[notebooks,test]'
	$(BIN)/python scripts/lock.py

# Every figure of the latest `make run`, as PNG and SVG; those of the README have names of their own.
figures: $(READY)
	@$(BIN)/python scripts/notebooks.py figures --profile $(PROFILE)

clean:
	rm -rf $(RUN)
