# Two commands: `make demo` and `make test`. Both need Python 3.11 and make, and build .venv/ first.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
DEMO := runs/demo
# What tests read. A test whose data could not be fetched is skipped, and says so.
DATA := mnist-5k shakespeare chatterbot heart-disease cd4
MORE_DATA := fashion-mnist fontwriters smollm2-135m watch-activity life-expectancy mri-tissue 20newsgroups film-genres spoken-digits emoji four-digits mobilenet-v2
fetch = for name in $(1); do $(BIN)/paceline data fetch $$name || echo "$$name is not here; its tests are skipped"; done

MUTANTS ?=

.PHONY: demo test test-slow lint docs mutants setup setup-dev clean

demo: setup ## fetch MNIST-5k, then compare four answers to stragglers under secure aggregation
	$(BIN)/paceline data fetch mnist-5k
	$(BIN)/paceline compare --config examples/demo.toml --replace --out $(dir $(DEMO)) --name $(notdir $(DEMO)) \
	  fedavg dropstragglers randomdropout:segmented=true clip:segmented=true

test: lint ## set up, check style and types, fetch small data, run the default tests
	$(call fetch,$(DATA))
	$(BIN)/python -m pytest -n 2

test-slow: setup-dev ## the long checks as well, Ray's and PostgreSQL's included
	$(PIP) install -c constraints.txt -e '.[dev,ray,postgres,mlflow,wandb]'
	$(call fetch,$(DATA) $(MORE_DATA))
	$(BIN)/python -m pytest -m "slow or not slow"

lint: setup-dev ## ruff, its format, strict mypy, and the layers that imports must respect
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: setup-dev ## build the documentation site in build/site; a broken link or reference is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

mutants: setup-dev ## change the code, one mutation at a time, and list what no test notices; MUTANTS=path chooses (hours; resumes)
	$(PIP) install -c constraints.txt -e '.[dev,mutants]'
	$(BIN)/python -m tests.mutants $(MUTANTS)

setup: .venv/.base
setup-dev: .venv/.dev

# torch goes first and alone, at its exact version: left to a range, pip would look for the newest build.
.venv/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Paceline needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install "torch==$(TORCH)"
	touch $@

.venv/.base: .venv/.torch pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e .
	touch $@

.venv/.dev: .venv/.base
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@

clean: ## remove the environment, caches, the site and the demo's results; other runs stay
	rm -rf .venv build $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
