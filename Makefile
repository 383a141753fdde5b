# make demo: a fresh machine to routed answers.   make test: the tests.   make lint: what CI also checks.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN = .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint format mutants clean

demo: .venv/.demo
	$(BIN)/hilora demo --pool pools/flan-mini

test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# long: some tests once for every changed expression; leaves what it found in mutants/
mutants: .venv/.dev
	$(PIP) --constraint constraints.txt --editable '.[default,dev,mutants]'
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut results

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch is pinned and comes first, so that nothing else decides which build of it is installed
.venv/.demo: pyproject.toml constraints.txt requirements-default.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "hilora needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv (a few minutes the first time) ..."
	$(PIP) $(TORCH)
	$(PIP) --constraint constraints.txt --editable '.[default]'
	$(PIP) --no-deps --require-hashes --requirement requirements-default.txt
	touch $@

.venv/.dev: .venv/.demo
	$(PIP) --constraint constraints.txt --editable '.[default,dev]'
	touch $@

clean:
	rm -rf .venv mutants .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
