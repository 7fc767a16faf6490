# Everything from a fresh clone: needs Python 3.11 or newer, git and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup train test test-slow lint docs clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,video]'
	@touch $@

train: setup
	$(BIN)/diffcps train diffcps --dataset builtin --preset hopper-medium-replay --updates 25000 --eval-every 5000 --out runs/first --resume

# A file to a worker: what its tests share is compiled and trained once. In their own order: the longest are not among the
# last. A worker that crashes ends the run: xdist may wait for ever for the one that replaces it.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# A warning, such as a link that leads nowhere, is an error.
docs: .venv/.installed-docs
	$(BIN)/python docs/site/build.py

.venv/.installed-docs: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

clean:
	rm -rf .venv runs build
