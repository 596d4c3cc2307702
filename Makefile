# Two commands on a fresh machine: `make demo` and `make test`. Python 3.11+ is all they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := .cache/demo

.PHONY: demo test lint models bench clean

demo: $(VENV)/.installed  ## Quantize the digits model and show its accuracy before and after
	@mkdir -p $(DEMO)
	$(BIN)/onnxq quantize models/digits/digits.onnx --data models/digits/calib.npz -o $(DEMO)/digits.int8.onnx
	$(BIN)/python scripts/digits_accuracy.py models/digits/digits.onnx $(DEMO)/digits.int8.onnx

test: $(VENV)/.installed-dev lint  ## Lint, types, and every test, on the larger real models too where they can be made
	-$(BIN)/python scripts/fetch_models.py --all
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

models: $(VENV)/.installed  ## Make the larger real models in .cache/models (installs torch into .venv-models)
	$(BIN)/python scripts/fetch_models.py --all

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .venv-models .cache build *.egg-info
