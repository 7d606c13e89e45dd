# `make demo` and `make test` each work on a fresh machine with Python >= 3.11 and make, alone and again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := skipreel-demo

.PHONY: demo test check drill install lock mlflow clean

demo: $(INSTALLED)
	$(BIN)/skipreel demo --output $(DEMO)

# Two processes share the tests out: tests/conftest.py.
test: check
	$(BIN)/python -m pytest -n 2

# Kills extractions for a quarter of an hour and prints the table of docs/reliability.md.
drill: $(INSTALLED)
	PYTHONPATH=. $(BIN)/python scripts/drill.py --minutes 15

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

install: $(INSTALLED)

# constraints.txt holds exact versions; the stamp makes a second call install nothing.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "skipreel needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": call make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(INSTALLED)

# Not Triton: a torch for CUDA wants one version of it and no other.
lock: $(INSTALLED)
	@(head -n 1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable --exclude triton | sed 's/+cpu$$//') > constraints.new
	@mv constraints.new constraints.txt

# The demo's experiment is the first in its database. Without the link's last part MLflow opens a page without the runs.
mlflow: $(INSTALLED)
	@echo "the demo's runs: http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning"
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false exec $(BIN)/mlflow server --workers 1 \
		--backend-store-uri sqlite:///$(DEMO)/mlflow.db --host 127.0.0.1 --port 5000

clean:
	rm -rf $(VENV) $(DEMO)
