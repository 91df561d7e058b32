# On a machine with Python 3.11+ and make: `make demo` or `make test`, nothing else first.
# TORCH_OPTIONS goes to the pip that installs torch, for instance an index of CPU builds.
PYTHON ?= python3
VENV ?= .venv
TORCH_OPTIONS ?=
BIN := $(VENV)/bin
DEMO := demo_output
DEMO_EPOCHS ?= 8

.PHONY: demo demo-train test test-slow test-lowest lint format clean

$(VENV)/.runtime: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH_OPTIONS) torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.development: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,lint]"
	touch $@

demo: $(VENV)/.runtime
	$(BIN)/adl-monai infer "$$($(BIN)/python -c 'import pathlib, nibabel; print(pathlib.Path(nibabel.__file__).parent / "tests/data/anatomical.nii")')" \
		-o $(DEMO) --preview --overwrite
	$(BIN)/adl-monai evaluate data_manifests/demo_real.json -o $(DEMO)/metrics.json --overwrite
	@echo "The denoised scan, its before/after picture and the figures are in $(DEMO):"
	@ls $(DEMO)

demo-train: $(VENV)/.runtime
	$(BIN)/adl-monai train data_manifests/demo_real.json -o $(DEMO)/run --overwrite --epochs $(DEMO_EPOCHS) --set val_interval=4
	$(BIN)/adl-monai evaluate data_manifests/demo_real.json --model $(DEMO)/run -o $(DEMO)/metrics_run.json --overwrite

# Two processes of one thread each: most tests keep one core busy, and two threads for each would be in one another's way.
test: $(VENV)/.development
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

test-slow: $(VENV)/.development
	$(BIN)/python -m pytest -m slow

# With the lowest versions that setup.cfg names. Linux: this torch is the large CUDA build, unless TORCH_OPTIONS say otherwise.
test-lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	sed -n 's/^    \([A-Za-z0-9-]*\)>=\([0-9a-z.]*\)$$/\1==\2/p' setup.cfg | sort -V \
		| awk -F== '{highest[$$1] = $$2} END {for (name in highest) print name "==" highest[name]}' > $(VENV)-lowest/lowest.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint $(VENV)-lowest/lowest.txt $(TORCH_OPTIONS) torch
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint $(VENV)-lowest/lowest.txt --editable ".[test]"
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest --numprocesses 2

lint: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.development
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-lowest $(DEMO) build dist *.egg-info
