# The commands of development; `make help` lists them.

PYTHON ?= $(firstword $(shell command -v python3.11 python3 python))
VENV := .venv
BIN := $(VENV)/bin

# The models, by name or by the folder of the exported model. The variables are set here, so that make does not take them
# from the environment, where other programs use these names.
NAME :=
MODEL := $(addprefix model_store/,$(or $(NAME),sentiment))
LEARNER :=
LABELLED :=
FIT_ARGS :=
TEXTS :=
# The version of the model in the image.
VERSION := 1.0
# If the command line names no model, the configuration names the models to serve.
ON_COMMAND_LINE := $(filter command,$(origin NAME) $(origin MODEL))
override MODEL := $(patsubst %/,%,$(MODEL))
SERVED := $(if $(ON_COMMAND_LINE),$(notdir $(MODEL)))
ARCHIVE := $(addsuffix .mar,$(MODEL))
# A file's name for the shell: it may have spaces and apostrophes.
quoted = '$(subst ','\'',$(1))'
# One file, or the two files of an ensemble, whose names have no spaces.
LEARNER_OPTIONS = $(if $(shell test -f $(call quoted,$(LEARNER)) && echo one),--learner $(call quoted,$(LEARNER)),$(foreach file,$(LEARNER),--learner $(call quoted,$(file))))
TEXTS_OPTION = $(if $(TEXTS),--texts $(call quoted,$(TEXTS)))
CONFIG ?= config.properties
DATA ?= Tweets.csv

SERVE := $(VENV)/serve.installed
TEST := $(VENV)/test.installed
TRAIN := $(VENV)/train.installed
BENCH := .venv-benchmarks
DOCS := .venv-docs
BULK := .venv-bulk

# Three processes with one thread each, since many tests wait for a server. The tests of a file stay in one process, because
# they may share a server.
PYTEST_ARGS ?= --numprocesses 3 --dist loadfile --no-loadscope-reorder

# The command ignores PYTHONPATH, where another package named `sentiment` may be.
WRITE_COMMAND = @printf '\#!/bin/sh\nexec "%s/python" -I -m sentiment "$$@"\n' "$$(cd '$(BIN)' && pwd)" > '$(BIN)/sentiment' && chmod +x '$(BIN)/sentiment'

# Install the client from this checkout. The locks hold its dependencies.
define INSTALL_CLIENT
@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-build-isolation --editable client
$(WRITE_COMMAND)
endef

# The image is named like the model, in lower case.
IMAGE ?= $(shell echo '$(notdir $(MODEL))' | tr A-Z a-z)
ENGINE ?= $(notdir $(firstword $(shell command -v podman docker)))
# Podman's default image format has no health check.
ENGINE_ARGS ?= $(if $(filter podman,$(ENGINE)),--format docker)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'

.PHONY: serve
serve: $(or $(if $(LEARNER),learner),$(if $(LABELLED),labelled),$(SERVE) $(ARCHIVE)) ## install what is missing, build the archive, and serve until Ctrl-C
	@exec $(BIN)/python -E -s -m server --config $(call quoted,$(CONFIG)) $(SERVED:%=--model %)

.PHONY: test
test: $(TEST) $(BULK)/installed $(ARCHIVE) ## install what is missing, and run every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: fault-test
fault-test: $(TEST) $(ARCHIVE) ## run the long failure tests (15 minutes), and write docs/explanation/torchserve.md's table
	FAULTS=long $(BIN)/python -m pytest tests/e2e/test_fuzz.py tests/e2e/test_faults.py tests/client/test_with_a_server.py

.PHONY: lint
lint: $(TEST) ## check the code with ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 client/sentiment

.PHONY: archive
archive: $(ARCHIVE) ## build model_store/sentiment.mar from the exported model and the handler

# Builds an archive from LEARNER, a file by fastai's `learner.export`. Only the packages of training can read that pickle.
.PHONY: learner
learner: own-check $(TEST)
	$(BIN)/python -m training export $(LEARNER_OPTIONS) --to '$(MODEL)'
	$(BIN)/python -m training archive --model '$(MODEL)' --to '$(ARCHIVE)' $(TEXTS_OPTION)

# Builds an archive from the labelled texts in LABELLED. FIT_ARGS are further options of `python -m training fit`.
.PHONY: labelled
labelled: own-check $(TEST)
	$(BIN)/python -m training fit --data $(call quoted,$(LABELLED)) --to '$(MODEL)' $(FIT_ARGS)
	$(BIN)/python -m training archive --model '$(MODEL)' --to '$(ARCHIVE)' $(TEXTS_OPTION)

# Checks the variables before any package is installed.
.PHONY: own-check
own-check:
	@test -z $(call quoted,$(LEARNER)) || test -z $(call quoted,$(LABELLED)) || \
	  { echo "error: expected LEARNER or LABELLED, not both" >&2; exit 1; }
	@for file in $(subst --learner,,$(LEARNER_OPTIONS)) $(if $(LABELLED),$(call quoted,$(LABELLED))); do test ! -d "$$file" || \
	  { echo "error: $$file is a folder; expected a file" >&2; exit 1; }; done
	@for file in $(subst --learner,,$(LEARNER_OPTIONS)); do test -f "$$file" || \
	  { echo "error: no file at $$file; expected a file written by fastai's learner.export" >&2; exit 1; }; done
	@test -z $(call quoted,$(LABELLED)) || test -f $(call quoted,$(LABELLED)) || \
	  { echo "error: no file at" $(call quoted,$(LABELLED))"; expected labelled texts: CSV, TSV, JSON lines or Parquet" >&2; exit 1; }
	@test $(words $(NAME)) = 1 || { echo "error: the model needs one name:" \
	  "make serve $(if $(LEARNER),LEARNER,LABELLED)="$(call quoted,$(call quoted,$(or $(LEARNER),$(LABELLED))))" NAME=reviews" >&2; exit 1; }
	@LC_ALL=C; case "$$NAME" in [!A-Za-z0-9]*|*[!A-Za-z0-9._-]*) echo "error: NAME=$$NAME: expected letters (a to z)," \
	  "digits, points, hyphens and underscores, with a letter or a digit first" >&2; exit 1;; esac
	@test -z '$(filter sentiment general,$(shell echo $(call quoted,$(NAME)) | tr A-Z a-z))' || \
	  { echo "error: model_store/$(NAME) came with this project; expected another NAME" >&2; exit 1; }

.PHONY: train
train: $(TRAIN) ## install what training needs, and train the embedded model again
	$(BIN)/python -m training all --data $(call quoted,$(DATA)) --notes model_store/sentiment-notes.md $(TRAIN_ARGS)

.PHONY: train-setup
train-setup: $(TEST) ## install what training and export need

.PHONY: teacher-setup
teacher-setup: $(TRAIN) ## install what make train needs: the packages of train-setup, and the weights of a large teacher (404 MB)

.PHONY: bench
bench: $(SERVE) $(ARCHIVE) $(BENCH)/installed ## measure this server and others, and write the results
	$(BENCH)/bin/python -m benchmarks --data $(call quoted,$(DATA)) $(BENCH_ARGS)

.PHONY: bulk-setup
bulk-setup: $(BULK)/installed $(ARCHIVE) ## install what bulk scoring needs (Apache Beam) into .venv-bulk

.PHONY: docs
docs: $(DOCS)/installed ## build the documentation site into site/, with warnings as errors
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build
	@echo "Open site/index.html."

.PHONY: image
image: ## build the container image, with podman or docker
	@test -n "$(ENGINE)" || { echo "error: neither podman nor docker is installed" >&2; exit 1; }
	@test -f '$(MODEL)/config.json' && test '$(MODEL)' = 'model_store/$(notdir $(MODEL))' || \
	  { echo "error: MODEL=$(MODEL); expected one exported model, such as MODEL=model_store/reviews" >&2; exit 1; }
	$(ENGINE) build $(ENGINE_ARGS) --tag '$(IMAGE)' --build-arg NAME='$(notdir $(MODEL))' \
	  --build-arg VERSION='$(VERSION)' --build-arg REVISION=$$(git rev-parse HEAD) .

.PHONY: image-test
image-test: image $(TEST) ## build the image, run it as Kubernetes does, and test it
	IMAGE=$(IMAGE) VERSION='$(VERSION)' CONTAINER_ENGINE=$(ENGINE) $(BIN)/python -m pytest tests/image

.PHONY: sbom
sbom: $(TEST) ## write sbom.json, the Python packages of the image (CycloneDX)
	$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --output-file $@.json requirements/serve.lock

# `make serve` and `make test` share an environment, so serve.lock has the versions of test.lock.
.PHONY: lock
lock: $(VENV)/python ## pin the dependencies of requirements/*.txt again
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(sed -n 's/^uv=/uv==/p' requirements/install)
	for name in test serve teacher benchmarks docs bulk; do \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-package torch --no-annotate --generate-hashes \
	    $$(test $$name != serve || echo --constraint requirements/test.lock) \
	    --override requirements/overrides.txt --custom-compile-command 'make lock' \
	    requirements/$$name.txt --output-file requirements/$$name.lock || exit 1; \
	done

.PHONY: clean
clean: ## remove the environments and what make has built; trained models stay
	rm -rf $(VENV) $(BENCH) $(DOCS) $(BULK) $(ARCHIVE) site logs client/*.egg-info sbom.json .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "error: Python 3.11 is needed; name one with: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@ln -s bin/python $@

$(SERVE): requirements/serve.lock requirements/serve.txt requirements/install client/pyproject.toml | $(VENV)/python
	requirements/install $(VENV) requirements/serve.lock
	$(INSTALL_CLIENT)
	@touch $@

$(TEST): requirements/test.lock requirements/test.txt requirements/train.txt requirements/install client/pyproject.toml | $(VENV)/python
	requirements/install $(VENV) requirements/test.lock
	$(INSTALL_CLIENT)
	@touch $@ $(SERVE)

$(TRAIN): requirements/teacher.lock requirements/teacher.txt requirements/install $(TEST)
	requirements/install $(VENV) requirements/teacher.lock
	@touch $@

# The other servers have an environment of their own.
$(BENCH)/installed: requirements/benchmarks.lock requirements/benchmarks.txt requirements/train.txt requirements/install | $(VENV)/python
	$(BIN)/python -m venv $(BENCH)
	requirements/install $(BENCH) requirements/benchmarks.lock
	@touch $@

# Apache Beam needs earlier versions of some packages than the tests.
$(BULK)/installed: requirements/bulk.lock requirements/bulk.txt requirements/install | $(VENV)/python
	$(BIN)/python -m venv $(BULK)
	requirements/install $(BULK) requirements/bulk.lock
	@touch $@

$(DOCS)/installed: requirements/docs.lock requirements/docs.txt | $(VENV)/python
	$(BIN)/python -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements/docs.lock
	@touch $@

# Each archive is built from the folder of its name. With texts to measure int8 on, it is always built again. The chosen
# precision is in one of the folder's .json files, which is older than the archive.
.SECONDEXPANSION:
$(ARCHIVE): %.mar: $(wildcard handler/*.py) $$(wildcard $$*/*.json $$*/*.safetensors) \
    $(patsubst %,training/export/%.py,archive engine graph precision sample) training/tables.py $(if $(TEXTS),always) | $(SERVE)
	$(BIN)/python -E -s -m training archive --model $* --to $@ $(TEXTS_OPTION)

.PHONY: always
