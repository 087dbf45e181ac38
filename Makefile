# make demo              run the whole graph on generated text, from installation to a registered model
# make run RECIPE=name   run the whole graph for another recipe
# make ui                start Dagster on http://127.0.0.1:3000, MLflow on http://127.0.0.1:5000; Ctrl-C stops both
# make test, make lint   run the tests; check style, types and language
# make docs              build the documentation into site/index.html and check its links
# make dist              build the source distribution, and from it the wheel, into dist/

RECIPE ?= demo
PYTHON ?= $(shell command -v python3.11 || command -v python3)

BERT_PIPELINE_HOME ?= workspace
# Not $(abspath): it splits a path at its blanks.
override BERT_PIPELINE_HOME := $(if $(filter /%,$(firstword $(BERT_PIPELINE_HOME))),,$(CURDIR)/)$(BERT_PIPELINE_HOME)
export BERT_PIPELINE_HOME
export VIRTUAL_ENV := $(CURDIR)/.venv
export PATH := $(VIRTUAL_ENV)/bin:$(PATH)
# Packages are installed without compiled files; Python writes those of the modules that it imports.
unexport PYTHONDONTWRITEBYTECODE

INSTALLED := .venv/installed

.PHONY: demo run ui home test lint docs dist

demo: RECIPE = demo
demo: run

run: $(INSTALLED)
	@bert-pipeline run "$(RECIPE)"

ui: $(INSTALLED)
	@bert-pipeline ui

# For plain `dg` and `dagster` with DAGSTER_HOME; `run` and `ui` do it themselves.
home: $(INSTALLED)
	@python -m orchestration.local.home

test: $(INSTALLED)-test
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)-lint
	ruff check .
	ruff format --check .
	mypy bert_pipeline orchestration
	python -m pytest -q tests/test_language.py

docs: $(INSTALLED)-docs
	python docs/reference.py site-source
	zensical build --strict --clean
	python docs/links.py site

dist: $(INSTALLED)
	rm -rf dist
	python -c "from setuptools import build_meta; build_meta.build_sdist('dist')" >/dev/null
	python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz

# .venv/installed-EXTRA has the packages of an extra, too. uv takes the torch of this machine: without a GPU, none of the
# gigabytes of CUDA. Without uv, or if uv fails (it ignores the settings of pip), pip installs.
$(INSTALLED) $(INSTALLED)-test $(INSTALLED)-lint $(INSTALLED)-docs: pyproject.toml constraints.txt
	@echo "Installing into .venv (log: .venv/install.log)" >&2
	@[ -e .venv/bin/python ] || "$(PYTHON)" -m venv .venv
	@set -- -c constraints.txt -e ".$(patsubst -%,[%],$(@:$(INSTALLED)%=%))"; \
	{ command -v uv && uv pip install --torch-backend auto --python .venv/bin/python "$$@" || \
	  .venv/bin/python -m pip install --no-compile "$$@"; } >.venv/install.log 2>&1 || \
	{ tail -n 20 .venv/install.log >&2; exit 1; }
	@touch $@
