# `make demo` runs the whole flow on synthetic Hebrew speech; `make test` runs the tests. Both set up what is missing.

PYTHON ?= python3
UV := $(shell command -v uv || echo .uv/bin/uv)
BIN := .venv/bin
# A CPU build of torch in a wheel folder that this machine's pip is told about is used; else the CUDA build is fetched.
WHEELS := $(wildcard $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null) $(PIP_FIND_LINKS))
TORCH = $(if $(wildcard requirements/wheels/torch-*+cpu-*.whl),cpu,cuda)
INSTALL := $(UV) pip install --quiet --python $(BIN)/python --no-deps --find-links requirements/wheels

.PHONY: setup local-wheels demo test test-slow check format bench lock clean

setup: $(UV) $(BIN)/python local-wheels
	@$(INSTALL) --require-hashes --requirements requirements/pins.txt --requirements requirements/$(TORCH).txt
	@$(INSTALL) --no-build-isolation --editable .

local-wheels:
	@ln -sf $(foreach folder,$(WHEELS),$(wildcard $(folder)/torch-*+cpu-*.whl)) requirements/wheels/ 2>/dev/null || true

.uv/bin/uv:
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .uv --require-hashes --requirement requirements/uv.txt

$(BIN)/python: | $(UV)
	$(UV) venv --quiet --allow-existing --python 3.11 .venv

demo: setup
	$(BIN)/caspi demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "slow or not slow"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python requirements/vulnerabilities.py $(UV)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks

lock: $(UV)
	$(PYTHON) requirements/lock.py $(UV) $(WHEELS)

clean:
	rm -rf .venv .uv .mypy_cache .pytest_cache .ruff_cache demo
