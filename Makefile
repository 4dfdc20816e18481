# The whole set-up is two commands: `make demo` and `make test`.  Each stamp in .venv records what is installed,
# so a second run starts at once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# One thread a process: the tests already keep every core busy.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest

.PHONY: demo test check format bench bench-gpu bench-index figures clean

demo: $(VENV)/.demo
	$(BIN)/cosplace demo

test: $(VENV)/.dev
	$(PYTEST) -n auto --dist loadfile

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/ty check --quiet
	$(PYTEST) -q -n auto --dist loadfile -m "not slow"

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

figures: $(VENV)/.dev  ## the table of README.md
	$(BIN)/python benchmarks/demo.py

bench: $(VENV)/.dev
	$(BIN)/cosplace bench --growth

bench-gpu: $(VENV)/.dev  ## needs a CUDA device
	$(BIN)/cosplace bench --gpu

ROWS ?= 1000000
bench-index: $(VENV)/.dev  ## the photo index with ROWS made photos
	$(BIN)/python -m benchmarks.index --rows $(ROWS)

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable '.[serve]' --constraint constraints.txt
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable '.[dev]' --constraint constraints.txt
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info
