# make demo              run the whole graph on generated text, from installation to a registered model
# make run RECIPE=name   run the whole graph for another recipe
# make test, make lint   run the tests; check style, types and language
# make docs              build the documentation into site/index.html and check its links
# make ui                start Dagster on http://127.0.0.1:3000, MLflow on http://127.0.0.1:5000; Ctrl-C stops both

RECIPE ?= demo
PYTHON ?= $(shell command -v python3.11 || command -v python3)

BERT_PIPELINE_HOME ?= workspace
# Not $(abspath): it splits a path at its blanks.
override BERT_PIPELINE_HOME := $(if $(filter /%,$(firstword $(BERT_PIPELINE_HOME))),,$(CURDIR)/)$(BERT_PIPELINE_HOME)
export BERT_PIPELINE_HOME
export DAGSTER_HOME := $(BERT_PIPELINE_HOME)/dagster
export VIRTUAL_ENV := $(CURDIR)/.venv
export PATH := $(VIRTUAL_ENV)/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
# If the code server is down while the daemon evaluates a backfill, the daemon retries.
export DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR := 1
# MLflow's job execution starts eight processes that this project does not use, and doubles the start-up time.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false
# For training on the CPU; see CPU_ENVIRONMENT in bert_pipeline/settings.py.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 3000
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 1099511627776
export MALLOC_TOP_PAD_ ?= 268435456

INSTALLED := .venv/installed
READY := $(INSTALLED) home

.PHONY: demo run test lint docs ui home

demo: RECIPE = demo
demo: run

run: $(READY)
	dg launch --job whole_graph --partition "$(RECIPE)" --config-json '{"loggers": {"console": {}}}'
	@python -m orchestration.report "$(RECIPE)"

test: $(INSTALLED)
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	ruff check .
	ruff format --check .
	mypy bert_pipeline orchestration
	python -m pytest -q tests/test_language.py

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet
	python docs/links.py site

# Each program gets a process group of its own (setsid), so that all of its processes end with it, whatever signal make
# receives. A shell runs a trap only between commands or while it waits, hence `wait`. It starts background programs with
# SIGINT ignored, and Dagster handles SIGTERM like SIGINT, hence `env`.
ui: $(READY)
	@python -m orchestration.tracking.database "sqlite:///$$BERT_PIPELINE_HOME/mlflow.db"
	@trap 'kill -- $$groups 2>/dev/null; wait' EXIT; trap exit HUP INT TERM; \
	setsid env --default-signal=INT mlflow server --host 127.0.0.1 --port 5000 --workers 1 \
	  --backend-store-uri "sqlite:///$$BERT_PIPELINE_HOME/mlflow.db" & groups=-$$!; \
	setsid env --default-signal=INT dg dev --host 127.0.0.1 --port 3000 & groups="$$groups -$$!"; \
	wait $$!

$(INSTALLED): pyproject.toml constraints.txt
	"$(PYTHON)" -m venv .venv
	.venv/bin/python -m pip install -c constraints.txt -e ".[orchestration,dev]"
	@touch $@

# A phony target with a test of its own, because make splits the name of a file at its blanks.
home:
	@mkdir -p "$$DAGSTER_HOME"
	@file="$$DAGSTER_HOME/dagster.yaml"; \
	if [ ! -e "$$file" ] || [ infra/dagster/dagster.yaml -nt "$$file" ]; then \
	  cp infra/dagster/dagster.yaml "$$file.$$$$" && mv "$$file.$$$$" "$$file"; \
	fi
