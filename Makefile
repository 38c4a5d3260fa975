# Everything runs from .venv, which is made on first use; the stamps inside it make a repeated `make` a matter of milliseconds.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
GPU_OUT ?= build/gpu

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
MADE := $(VENV)/.made
TOOLS := $(VENV)/.tools
BUILT := $(VENV)/.built
FRAMEWORKS := .venv-frameworks
NATIVE := $(shell find csrc -type f)

.PHONY: venv build demo gallery precision test test-frameworks bench gpu lint format sanitize clean

venv: $(TOOLS)
build: $(BUILT)

$(MADE):
	$(PYTHON) -m venv $(VENV)
	touch $@

# The extension is compiled against the torch of this environment, so torch and the build tools come first.
$(TOOLS): $(MADE) $(wildcard $(CONSTRAINTS))
	$(PIP) setuptools wheel ninja pybind11 torch numpy
	touch $@

# An editable install compiles everything in a temporary folder; when only C++ changed, rebuild just that, incrementally.
$(BUILT): $(TOOLS) pyproject.toml setup.py $(NATIVE)
	$(if $(filter-out csrc/%,$?),$(PIP) --no-build-isolation -e ".[dev]",$(BIN)/python setup.py -q build_ext --inplace)
	touch $@

demo: $(BUILT)
	$(BIN)/python examples/digits.py

gallery: $(BUILT)
	$(BIN)/python examples/compare_optimizers.py

precision: $(BUILT)
	$(BIN)/python examples/precision.py

# Once on the CPU engine; then what steps params again on the CUDA engine under its emulator, with its numbers in device
# memory and on the host.
test: $(BUILT)
	$(BIN)/python -m pytest -n auto
	$(BIN)/python -m pytest -n auto --cuda-emulator=device
	$(BIN)/python -m pytest -n auto --cuda-emulator=host

# Lightning and Accelerate stay out of .venv. Both environments have one torch, so the extension built for the one serves.
$(FRAMEWORKS)/.made: tests/frameworks/requirements.txt $(wildcard $(CONSTRAINTS))
	$(PYTHON) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/python -m pip install $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -r $<
	touch $@

test-frameworks: $(BUILT) $(FRAMEWORKS)/.made
	PYTHONPATH="$(CURDIR)" $(FRAMEWORKS)/bin/python -m pytest tests/frameworks

bench: $(BUILT)
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/figures.py

# Not in .venv: it takes the machine's own CUDA build of torch. Each of its parts has a time limit.
gpu:
	$(PYTHON) benchmarks/gpu_all.py --out "$(GPU_OUT)"

lint: $(BUILT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)

format: $(BUILT)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

sanitize: $(BUILT)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tests/sanitize/run.sh

clean:
	rm -rf $(VENV) $(FRAMEWORKS) build dist *.egg-info fusedopt/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
