# The whole set-up is two commands: `make demo` and `make test`.  Each stamp in .venv records what is installed,
# so a second run starts at once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# One thread a process, and one process more than there are cores: many tests wait for servers and other processes.
WORKERS := $(shell echo $$(( $$(nproc) + 1 )))
# The tests of a file are run by one process, those of files with slow tests first (tests/conftest.py).
BY_FILE := --dist loadfile --no-loadscope-reorder
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest

.PHONY: demo test extras long lint check minimum format docs site bench bench-user bench-gpu bench-index figures clean

demo: $(VENV)/.demo
	$(BIN)/cosplace demo

# Many tests wait for browsers, servers and other processes.  One that fails beside all the others is run once more,
# alone, and has to pass there; both results are printed.
AGAIN := -n 0 --last-failed --last-failed-no-failures none --maxfail 1

test: $(VENV)/.dev
	$(PYTEST) -n $(WORKERS) $(BY_FILE) -m "not long" || \
	  $(PYTEST) $(AGAIN) -m "not long"

# One process, since each of these tests starts processes of its own.  If one hangs, its stack is printed after 4 minutes.
extras: $(VENV)/.extras  ## the tests that need Ray or OpenVINO, which are skipped without them
	$(PYTEST) -n 0 -m "extras and not long" -o faulthandler_timeout=240 || \
	  $(PYTEST) $(AGAIN) -m "extras and not long"

long: $(VENV)/.dev  ## the tests that kill processes again and again, or train for long
	$(PYTEST) -n $(WORKERS) --dist load -m long

lint: $(VENV)/.dev  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/ty check --quiet

check: lint
	$(PYTEST) -q -n $(WORKERS) $(BY_FILE) -m "not slow and not long"

# Tests of texts, pages, layers, benchmarks and files for deployment hardly depend on versions of libraries.
TEXTS := test_language.py test_site.py test_layers.py web cli/test_help.py deploy benchmarks
WITHOUT_TEXTS := -m "not slow and not long" $(TEXTS:%=--ignore tests/%)
MINIMUM := OMP_NUM_THREADS=1 COSPLACE_EXAMPLES=20 .venv-minimum/bin/pytest -q -o cache_dir=.venv-minimum/.pytest_cache
minimum: .venv-minimum/.installed  ## the fast tests with the minimum versions of all dependencies
	$(MINIMUM) -n $(WORKERS) $(BY_FILE) $(WITHOUT_TEXTS) || $(MINIMUM) $(AGAIN) $(WITHOUT_TEXTS)

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev  ## docs/commands.md
	$(BIN)/python -m cosplace.cli.reference > docs/commands.md

site: $(VENV)/.dev  ## the documentation as a website, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

figures: $(VENV)/.dev  ## the table of README.md
	$(BIN)/python benchmarks/demo.py

ARGS ?= --growth
bench: $(VENV)/.dev  ## e.g. make bench ARGS="--quick --json FILE"
	$(BIN)/python -m benchmarks $(ARGS)

bench-user: $(VENV)/.dev  ## eval compared with scripts that users write instead, e.g. make bench-user ARGS=--quick
	$(BIN)/python -m benchmarks.user $(filter-out --growth,$(ARGS))

bench-gpu: $(VENV)/.dev  ## needs a CUDA device
	$(BIN)/python -m benchmarks --gpu

ROWS ?= 1000000
bench-index: $(VENV)/.dev  ## the photo index with ROWS synthetic photos
	$(BIN)/python -m benchmarks.index --rows $(ROWS)

# `make UV=PATH` installs with uv, which takes a fifth of the time, and with pip where uv fails.
# install: environment, extras, constraints.
COMMA := ,
ARGS_OF_INSTALL = install --quiet --editable '.[$(2)]' --constraint $(3)
install = $(if $(UV),UV_COMPILE_BYTECODE=1 VIRTUAL_ENV=$(CURDIR)/$(1) $(UV) pip $(ARGS_OF_INSTALL) ||) $(1)/bin/pip $(ARGS_OF_INSTALL)

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(call install,$(VENV),serve,constraints.txt)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(call install,$(VENV),dev,constraints.txt)
	@touch $@ $(VENV)/.demo

$(VENV)/.extras: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(call install,$(VENV),dev$(COMMA)cluster$(COMMA)openvino,constraints.txt)
	@touch $@ $(VENV)/.dev $(VENV)/.demo

.venv-minimum/.installed: pyproject.toml constraints-minimum.txt
	$(PYTHON) -m venv .venv-minimum
	$(call install,.venv-minimum,dev,constraints-minimum.txt)
	@touch $@

clean:
	rm -rf $(VENV) site .venv-minimum .venv-uv .pytest_cache .ruff_cache .hypothesis build *.egg-info
