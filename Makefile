# make demo   the demonstration: a few minutes, no data needed
# make test   ruff, mypy and the default tests
# make test-library   those of masks on models: a third of the default tests
# make test-all   every test that needs no GPU: faults, Ray, long ones
# make test-cluster   Slurm, Ray on several nodes and PostgreSQL, with their daemons: 20 minutes, best as root
# make test-decoders   the tests of masksearch-decoders alone
# make test-llamacpp   GGUF files as llama.cpp computes them: builds llama-cpp-python first, up to an hour
# make written  the pages and schemas that programs write: commands, api, gallery
# make verify-results   every claim of the pages, recomputed from the result files that are kept
# make docs   the site, in build/site: a minute or two; make linkcheck (network): the links that leave it
# make gpu    the tests and benchmarks that need a GPU, with PYTHON as it is
# Each but the last makes a virtual environment in .venv first, and installs when versions change;
# with CONSTRAINTS=/dev/null the newest ones.

PYTHON ?= python3
PYTEST ?= -n 2
# compiled files are kept: the second run of the tests begins 15 s earlier, and so do its programs
export PYTHONDONTWRITEBYTECODE :=
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin
BASE := .venv/installed
STAMP := .venv/installed-dev
DOCS := .venv/installed-docs
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --constraint $(CONSTRAINTS)
BESIDE = --editable ./masksearch-bench --editable ./masksearch-decoders
SITE = $(BIN)/python -m sphinx -q -n -j auto -W --keep-going -c docs

.PHONY: demo test lint types tests test-library test-all test-cluster test-decoders test-llamacpp verify-results written docs linkcheck gpu install format clean

demo: $(BASE)
	$(BIN)/masksearch demo --run runs/demo

test: lint types tests # make -j3 test: side by side

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

tests: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST)

test-library: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST) tests/masks tests/attention tests/models

test-all: export HYPOTHESIS_PROFILE ?= thorough
test-all: $(STAMP)
	$(BIN)/python -m pytest -m "not gpu and not ray" -n 2
	$(BIN)/python -m pytest -m "ray and not gpu" --ignore tests/cluster

test-cluster: $(STAMP)
	$(BIN)/python -m pytest tests/cluster -m "not gpu" -rs --durations 20

test-decoders: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST) masksearch-decoders/tests

# the version that masksearch-decoders/tests/llama_cpp_cells.json names
test-llamacpp: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps llama-cpp-python==0.3.36 diskcache
	$(BIN)/python -m pytest masksearch-decoders/tests/test_llama_cpp.py -m nightly -rs

verify-results: $(BASE)
	$(BIN)/python -m experiments.verify

written: $(STAMP)
	for each in docs/programs/write_*.py; do PYTHONPATH=. $(BIN)/python $$each || exit 1; done

docs: $(DOCS)
	$(SITE) -b html . build/site

linkcheck: $(DOCS)
	$(BIN)/python docs/inventories/renew.py
	$(SITE) -b linkcheck . build/links

# No environment is made here: the torch that drives the GPU is the one that PYTHON has.
gpu:
	PYTHONPATH=. $(PYTHON) -m pytest -m gpu -n 8 -rs
	PYTHONPATH=. $(PYTHON) benchmarks --device cuda

install: $(STAMP)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch by pip: its exact version is the one that has a build for machines without a GPU.
# The rest by uv, which resolves, unpacks and compiles side by side: half of pip's time.
$(BASE): pyproject.toml masksearch-bench/pyproject.toml masksearch-decoders/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) uv
	$(BIN)/python -m pip install --quiet --no-compile --constraint $(CONSTRAINTS) torch
	$(INSTALL) --editable ".[search]" $(BESIDE)
	touch $(BASE)

$(STAMP): $(BASE)
	$(INSTALL) --editable ".[dev]" $(BESIDE)
	touch $(STAMP)

$(DOCS): $(STAMP)
	$(INSTALL) --editable ".[docs]"
	touch $(DOCS)

clean:
	rm -rf .venv build docs/api .mypy_cache .pytest_cache .ruff_cache
