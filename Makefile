# make test | test-oldest | bench | compare | gpu | soak | mutants | repeat | docs | lint: each sets up
# its environment by itself, the first time and whenever pyproject.toml has changed. Another
# interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A second environment: the lowest versions that pyproject.toml declares, with the Python that a CUDA
# machine has. A python3.12 of pyenv is found even where pyenv has another one selected.
OLDEST := .venv-oldest
OLDEST_PYTHON ?= $(or $(firstword $(foreach python,python3.12 $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python),\
  $(shell $(python) -c 'print("$(python)")' 2>/dev/null))),$(PYTHON))
# Two processes, a file at a time: most of the tests' time is compilation on one core. Their threads
# must not spin while they wait, or each process would hold both cores. In the files' order: xdist's
# own, by their numbers of tests, leaves the interpreter's for last, minutes on one core.
TEST_FLAGS ?= -n 2 --dist loadfile --no-loadscope-reorder -p no:benchmark
# Tests of what a CUDA machine runs: bench.gpu and tests/cuda on a stand-in for CUDA, and our code
# without the packages that such a machine lacks. They run in test-oldest alone, with its versions,
# because CI has no time to run them twice.
CUDA_MACHINE_TESTS := tests/rehearsal/test_bench_gpu.py tests/rehearsal/test_cuda_tests.py \
  tests/project/test_bare_machine.py
# What depends on the versions of torch and triton: kernels built, executed, captured and rehearsed,
# their PyTorch twins, a training step. Few combinations of parameters (tests/project/few.py).
OLDEST_TESTS ?= $(CUDA_MACHINE_TESTS) tests/rehearsal/test_stand_in.py tests/executed \
  $(wildcard tests/kernels/*/test_offline*.py) $(addprefix tests/kernels/,$(addsuffix .py,test_capture \
  test_kernel_sources test_launch test_compile noise/test_noise latent/test_latent bernoulli/test_bernoulli \
  linear_bernoulli/test_linear_bernoulli mixture/test_mixture importance/test_importance)) \
  tests/training/test_steps.py tests/project/test_lowest.py tests/latents/test_transforms.py
BENCH_FLAGS ?=
GPU_OUT ?= runs/gpu
GPU_PART ?=
GPU_FLAGS ?=
SOAK_OUT ?= runs/soak
MUTANTS_OUT ?= runs/mutants
DATA_ROOT ?= data
DOCS_OUT ?= build/docs

.PHONY: test test-oldest bench compare gpu soak mutants repeat docs lint format clean

test: $(INSTALLED)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest $(TEST_FLAGS) $(addprefix --ignore=,$(CUDA_MACHINE_TESTS))

test-oldest: $(OLDEST)/.installed
	PYTEST_PLUGINS=tests.project.few OMP_WAIT_POLICY=passive \
	  $(OLDEST)/bin/python -m pytest $(TEST_FLAGS) $(OLDEST_TESTS)
	PYTEST_PLUGINS=tests.project.few OMP_WAIT_POLICY=passive TRITON_INTERPRET=1 VAEZ_BACKEND=triton \
	  $(OLDEST)/bin/python -m pytest $(TEST_FLAGS) tests/interpreted -k reference

bench: $(INSTALLED)
	$(BIN)/python -m pytest bench --benchmark-only $(BENCH_FLAGS)

compare: $(INSTALLED)
	$(BIN)/vaez-fast compare

# On a CUDA machine, at most eight minutes a part; make gpu GPU_PART=ops for one of correctness, ops,
# training and rivals. Without make: PYTHONPATH=.:kernels python -m bench gpu [PART] --out DIR
gpu: $(INSTALLED)
	$(BIN)/python -m bench gpu $(GPU_PART) --out $(GPU_OUT) --data-root $(DATA_ROOT) $(GPU_FLAGS)

# A quarter of an hour: 20,000 steps with an eye on memory, and 20 runs killed and resumed.
soak: $(INSTALLED)
	OMP_WAIT_POLICY=passive $(BIN)/python -m bench soak --out $(SOAK_OUT)

# An hour or two: every small bug of tests/mutants in turn, and the tests that should catch it.
mutants: $(INSTALLED)
	$(BIN)/python -m tests.mutants --out $(MUTANTS_OUT)

# Some minutes: reports/train-mnist again, to the last digit where the processor is the same.
repeat: $(INSTALLED)
	$(BIN)/python -m bench repeat --data-root $(DATA_ROOT)

docs: $(INSTALLED)
	$(BIN)/python docs/reference.py $(DOCS_OUT)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OLDEST) .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one with PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV) with PyTorch: minutes the first time, gigabytes to download."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
# pythae asks for "dataclasses", a copy for Python 3.6 that torch.compile's workers would import
# instead of Python's own, and die.
	$(BIN)/python -m pip uninstall --quiet --disable-pip-version-check --yes dataclasses
	@touch $@

$(OLDEST)/.installed: pyproject.toml tests/project/lowest.py
	@echo "Setting up $(OLDEST) with $(OLDEST_PYTHON) and the lowest versions of PyTorch and Triton."
	$(OLDEST_PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python tests/project/lowest.py > $(OLDEST)/requirements.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -r $(OLDEST)/requirements.txt
	@touch $@
