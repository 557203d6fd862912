# make train: set everything up, then train and test the multi-head network (a few minutes).
# make play:  set everything up, train the multi-head network where there is no run yet, then play with it in the browser.
# make test:  set everything up, then run the quick tests.   make test-all: the slow ones.   make check: lint and types.
# make test-oldest: the quick tests with the oldest versions that pyproject.toml allows. make test-newest: with the newest.
# make test-peers: metrics and methods beside those of four peers, and 50 networks of timm.
# Any of these with another Python: make test VENV=.venv-3.13 PYTHON=python3.13.
# make docs:  set everything up, then build the site in site/. make serve: show it in the browser, with search.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
PARALLEL := -m pytest -n 2 --dist worksteal
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python $(PARALLEL)
OLDEST := $(VENV)-oldest
NEWEST := $(VENV)-newest

.PHONY: train play test test-all test-oldest test-newest test-peers check docs serve clean

train: $(READY)
	$(VENV)/bin/python -m cnnlab.train experiment=multihead

play: $(READY)
	$(VENV)/bin/python -c 'import cnnlab; cnnlab.newest()' 2>/dev/null || $(MAKE) train
	$(VENV)/bin/python -m cnnlab.play

test: $(READY)
	$(PYTEST) -m "not slow"

test-all: $(READY)
	$(PYTEST) -m slow

# Old libraries warn of what is new in those that they use.
test-oldest: $(READY)
	$(VENV)/bin/uv venv --quiet --clear --seed --python $(VENV)/bin/python $(OLDEST)
	$(VENV)/bin/uv pip install --quiet --python $(OLDEST) --resolution lowest-direct --editable '.[dev]'
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python $(PARALLEL) -m "not slow" -W ignore::DeprecationWarning

test-newest: $(READY)
	$(VENV)/bin/uv venv --quiet --clear --seed --python $(VENV)/bin/python $(NEWEST)
	$(VENV)/bin/uv pip install --quiet --python $(NEWEST) --editable '.[dev]'
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python $(PARALLEL) -m "not slow"

# The peers bring an OpenCV that is not that of `dev`, and warn as they are imported.
test-peers: $(READY)
	$(VENV)/bin/uv venv --quiet --clear --python $(VENV)/bin/python $(VENV)-peers
	$(VENV)/bin/uv pip install --quiet --python $(VENV)-peers --constraint constraints.txt --editable . pytest \
	  quantus==0.6.0 zennit==0.5.1 torchcam==0.5.0 grad-cam==1.5.7 timm==1.0.31
	OMP_NUM_THREADS=2 $(VENV)-peers/bin/python -m pytest -W ignore tests/interpret/test_peers.py

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(READY)
	$(VENV)/bin/mkdocs build

serve: $(READY)
	$(VENV)/bin/mkdocs serve

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cnnlab needs Python 3.11 or newer: make PYTHON=<python3.11>")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) $(VENV)-peers $(OLDEST) $(NEWEST) dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
