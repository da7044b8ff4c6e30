# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Both make their own .venv from pinned versions first; the second time nothing is installed and no network is needed.

# Pythia 8 has wheels for Python 3.11, 3.12 and 3.13.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready

# `make demo JETS=4000 EPOCHS=2` is a smaller demo, in folders of its own.
JETS ?= 24000
EPOCHS ?= 6
SIZE := $(if $(filter-out 24000 6,$(JETS) $(EPOCHS)),-$(JETS)-$(EPOCHS))
SIM := data/sim$(SIZE)
RUN := runs/demo$(SIZE)

.PHONY: demo results test test-all lint format clean-demo

demo: $(READY)
	$(BIN)/python jobs/simulate.py datasets/jetclass2_sim.yaml output=$(SIM)/root jets=$(JETS)
	$(BIN)/python jobs/ingest.py datasets/jetclass2.yaml input='$(SIM)/root/*.root' output=$(SIM)/shards
	$(BIN)/python jobs/pretrain.py jobs/recipes/demo.yaml data=$(SIM)/shards run=$(RUN) train.epochs=$(EPOCHS)
	$(BIN)/python jobs/transfer.py datasets/tasks/demo.yaml backbone=$(RUN)
	$(BIN)/python jobs/export.py $(RUN)

results: $(READY)
	$(BIN)/python jobs/compare.py jobs/recipes/comparison.yaml

test: $(READY) lint
	$(BIN)/python -m pytest -m "not slow"

test-all: $(READY) lint
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean-demo:
	rm -rf data/sim data/sim-* runs/demo runs/demo-*

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found; set PYTHON=/path/to/python"; exit 2; }
	@$(PYTHON) -c 'import ensurepip' || { echo "error: $(PYTHON) cannot make environments; install python3-venv"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[sim,dev]'
	@touch $@
