# make reproduce            every table and figure (make reproduce ARGS="--profile smoke --only demo")
# make test                 the whole suite, on all cores
# make test-fast            what to run while working: not the notebooks, engines and processes
# make lab                  JupyterLab with the explorer
# make lint                 style, docstrings and types
# make docs                 README's longer half and the API as pages in site/, without a request to anybody
# All set themselves up in .venv on the first call and whenever the requirements change.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
# The versions that were tested; CONSTRAINTS= takes the newest that requirements.txt allows.
CONSTRAINTS ?= -c constraints.txt
# How pytest shares the tests out: a file stays on one core, as its tests share what they make. WORKERS= takes one core.
WORKERS ?= -n auto --dist loadfile

.PHONY: reproduce lab test test-fast lint docs clean distclean

reproduce: $(READY)
	$(VENV)/bin/python -m dmcmc_core reproduce $(ARGS)

test: $(READY)
	$(VENV)/bin/python -m pytest -q $(WORKERS) $(ARGS)

test-fast: $(READY)
	$(VENV)/bin/python -m pytest -q -m "not slow" $(WORKERS) $(ARGS)

lab: $(READY)
	$(VENV)/bin/python -m jupyterlab notebooks/Explorer.ipynb $(ARGS)

lint: $(READY)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python

docs: $(READY)
	@$(VENV)/bin/python -c "import material, mkdocstrings" 2> /dev/null || $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e .[docs]
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet

# The stamp comes last: an interrupted installation is taken up again.
$(READY): requirements.txt constraints.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, set PYTHON=/path/to/python3.11")'
	@$(VENV)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -r requirements.txt
	@touch $@

# What was computed; figures/ and the environment stay.
clean:
	rm -rf exp/runs exp/cache site .pytest_cache .ruff_cache build *.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
