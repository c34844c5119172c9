# make reproduce            every table and figure (make reproduce ARGS="--profile smoke --only demo")
# make test                 the tests
# Both set themselves up in .venv on the first call and whenever the requirements change.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: reproduce test lint clean distclean

reproduce: $(READY)
	$(VENV)/bin/python -m dmcmc_core reproduce $(ARGS)

test: $(READY)
	$(VENV)/bin/python -m pytest -q $(ARGS)

lint: $(READY)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

# The stamp comes last: an interrupted installation is taken up again.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, set PYTHON=/path/to/python3.11")'
	@$(VENV)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# What was computed; figures/ and the environment stay.
clean:
	rm -rf exp/runs exp/cache .pytest_cache .ruff_cache build *.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print | xargs rm -rf

distclean: clean
	rm -rf $(VENV)
