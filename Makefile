# `make run` and `make test` set everything up and do everything; see README.md.
# The Snakefile says when a notebook runs again.

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
# Compiled once, when first imported, and not anew in every process.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
RUN := runs/$(PROFILE)
NAMES := $(sort $(basename $(notdir $(wildcard notebooks/[0-9][0-9]_*.ipynb))))
# Tests behind the notebooks: of what those have left, and of what takes as long as the other tests do.
BEHIND := $(addprefix tests/workflow/test_,notebooks.py site.py harnesses.py)
MAIN := $(filter 00_% 01_% 02_% 03_% 04_% 05_%,$(NAMES))
SNAKEMAKE := $(BIN)/snakemake --cores $(or $(OMP_NUM_THREADS),all) --nolock --rerun-incomplete --scheduler greedy --quiet all \
	--rerun-triggers params input mtime

.PHONY: run course parameters plan test smoke lint unit lab site sweep bench setup lock figures clean

# From the texts to the table of methods: notebooks 00 to 05.
run: parameters
	@$(SNAKEMAKE) -- $(MAIN:%=$(RUN)/%.ipynb)
	@$(BIN)/python scripts/notebooks.py report --profile $(PROFILE)

# All notebooks.
course: parameters
	@$(SNAKEMAKE) -- $(NAMES:%=$(RUN)/%.ipynb)
	@$(BIN)/python scripts/notebooks.py report --profile $(PROFILE)

# One notebook, after those that it needs: `make runs/laptop/03_boundary.ipynb`.
$(RUN)/%.ipynb: parameters
	@$(SNAKEMAKE) -- $@

# Refuses unknown parameters before anything runs.
parameters: $(READY)
	@$(BIN)/python scripts/notebooks.py parameters --profile $(PROFILE) $(MAKEOVERRIDES)

# What a run needs and would cost, without weights: `make plan PROFILE=paper`; executes nothing.
plan: $(READY)
	@$(BIN)/python scripts/plan.py --profile $(PROFILE) $(MAKEOVERRIDES)

# One or several notebooks over a grid: `make sweep NOTEBOOK=05_evaluation BETA=0,1,3`, or GRID=grid.yaml.
sweep: $(READY)
	@$(BIN)/python scripts/sweep.py $(MAKEOVERRIDES)

# Tests and notebooks side by side, each on one thread: both are too small to gain from more.
test: lint $(VENV)/site-ready
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j2 unit smoke

smoke: $(VENV)/harness/ready
	@$(MAKE) --no-print-directory course PROFILE=smoke
	@$(MAKE) --no-print-directory site PROFILE=smoke
	@$(BIN)/python -m pytest --durations 10 $(BEHIND)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

unit: $(READY)
	$(BIN)/python -m pytest --durations 30 $(BEHIND:%=--ignore %)

# As root, in a container, Jupyter asks to be told that this is meant.
lab: $(READY)
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_start.ipynb \
		$(if $(filter 0,$(shell id -u)),--allow-root)

# The executed notebooks, a glossary and the library's reference as pages that open without a network.
site: $(VENV)/site-ready
	@$(BIN)/python scripts/build_site.py --profile $(PROFILE)

$(VENV)/site-ready: docs/requirements.txt $(READY)
	@$(BIN)/python -m pip install -qq --no-compile --requirement requirements.txt --requirement docs/requirements.txt
	@touch $@

# Other people's harnesses, apart, since they need other versions of what the lock has.
$(VENV)/harness/ready: tests/workflow/harnesses.txt $(READY)
	@$(BIN)/python tests/environments.py $(VENV)/harness $<
	@touch $@

# What SASA costs against plain sampling; needs about an hour on two cores, and goes on where it stopped.
bench: $(READY)
	$(BIN)/python studies/bench.py

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	@echo "installing the locked requirements into $(VENV) (2.5 GB), once, for some minutes ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --no-compile --requirement requirements.txt
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
