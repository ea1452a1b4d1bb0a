# Two commands do everything on a fresh machine: `make demo` and `make test`. Each builds .venv on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ROOT ?= runs/demo

.PHONY: demo test fuzz soak package-check colab-check bench docs readme help

help:
	@echo "make demo              the whole pipeline on a synthetic board, into $(ROOT)"
	@echo "make test              everything CI checks"
	@echo "make fuzz              thousands of inputs on each property of what comes from outside (EXAMPLES=2000)"
	@echo "make soak              20,000 links from a server with every fault, in 10 minutes at most"
	@echo "make package-check     the sdist and the wheel, each installed into an empty environment and used"
	@echo "make colab-check       install beside the versions that Colab has, and run the notebooks there"
	@echo "make bench WHAT=name   a measured table, and runs/bench/name.json"
	@echo "make docs              the docs site, into _docs, with the generator of RUN where there is one (and Node)"
	@echo "make readme            README.md from nbs/index.ipynb"

$(VENV)/.done: settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; v=sys.version_info[:2]; sys.exit(0 if v>=(3,11) else f"pttface needs Python 3.11 or newer; $(PYTHON) is {v[0]}.{v[1]}. Name another: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.done
	$(BIN)/pttface demo --root $(ROOT) $(ARGS)

test: $(VENV)/.done
	$(BIN)/python tools/check.py $(ARGS)

# Ends at the first property that does not hold; the input that shows it is printed. Seeds differ from run to run.
EXAMPLES ?= 2000
fuzz: $(VENV)/.done
	PTTFACE_FUZZ=$(EXAMPLES) $(BIN)/python -m pytest -q -x tests/test_fuzz.py $(ARGS)

soak: $(VENV)/.done
	$(BIN)/python tools/soak.py $(ARGS)

package-check: $(VENV)/.done
	$(BIN)/python tools/package_check.py $(ARGS)

# COLAB_PYTHON: the Python of that runtime. Colab has 3.13.
COLAB_PYTHON ?= $(BIN)/python
colab-check: $(VENV)/.done
	$(BIN)/python tools/colab_check.py --python $(COLAB_PYTHON) $(ARGS)

bench: $(VENV)/.done
	$(BIN)/python tools/bench.py $(or $(WHAT),--help) $(ARGS)

# RUN: a run's folder, or an exported one, that draws on the page "Draw one".
RUN ?= $(or $(PTTFACE_GENERATOR),$(ROOT)/runs/tiny)
docs: $(VENV)/.done
	PTTFACE_GENERATOR=$(RUN) $(BIN)/python tools/docs.py

readme: $(VENV)/.done
	$(BIN)/python tools/readme.py
