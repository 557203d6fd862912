# make train: set everything up, then train and test the multi-head network (a few minutes).
# make test:  set everything up, then run all tests.   make test-fast: the quick ones.   make check: lint and types.
# make docs:  set everything up, then build the site in site/, notebooks included (ten minutes).
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal

.PHONY: train test test-fast check docs clean

train: $(READY)
	$(VENV)/bin/python -m cnnlab.train experiment=multihead

test: $(READY)
	$(PYTEST)

test-fast: $(READY)
	$(PYTEST) -m "not slow"

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(READY)
	$(VENV)/bin/mkdocs build

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cnnlab needs Python 3.11 or newer: make PYTHON=<python3.11>")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
