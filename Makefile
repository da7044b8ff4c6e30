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

.PHONY: demo results experiment test test-all lint format clean-demo

demo: $(READY)
	$(BIN)/python jobs/simulate.py datasets/jetclass2_sim.yaml output=$(SIM)/root jets=$(JETS)
	$(BIN)/python jobs/ingest.py datasets/jetclass2.yaml input='$(SIM)/root/*.root' output=$(SIM)/shards
	$(BIN)/python jobs/pretrain.py jobs/recipes/demo.yaml data=$(SIM)/shards run=$(RUN) train.epochs=$(EPOCHS)
	$(BIN)/python jobs/transfer.py datasets/tasks/demo.yaml backbone=$(RUN)
	$(BIN)/python jobs/export.py $(RUN)

results: $(READY)
	$(BIN)/python jobs/compare.py jobs/recipes/comparison.yaml

# Does a contrastive part of the pre-training help? Six pre-trainings of one budget on the same jets (those of `results`),
# then every task by every method, on backbones with it and without. Two hours on 2 cores with 16 GB.
SAME := data=data/comparison/shards prepare.root=data/comparison/root prepare.jets=200000 train.steps_per_epoch=100 checkpoints.metric=step
PLAIN := $(foreach seed,1 2 3,runs/experiment/plain-$(seed))
CONTRASTIVE := $(foreach seed,1 2 3,runs/experiment/contrastive-$(seed))
comma := ,
listed = $(subst $(eval) ,$(1),$(2))

$(PLAIN): runs/experiment/plain-%: $(READY)
	$(BIN)/python jobs/pretrain.py jobs/recipes/demo.yaml $(SAME) train.seed=$* run=$@
$(CONTRASTIVE): runs/experiment/contrastive-%: $(READY)
	$(BIN)/python jobs/pretrain.py jobs/recipes/demo_contrastive.yaml $(SAME) train.seed=$* run=$@
.PHONY: $(PLAIN) $(CONTRASTIVE) tasks

tasks: $(READY)
	for task in hadronic_w x_to_ww x200; do \
	  $(BIN)/python jobs/simulate.py datasets/tasks/simulation/$$task.yaml && \
	  $(BIN)/python jobs/ingest.py input="data/tasks/$$task/root/*.root" output=data/tasks/$$task/shards \
	    $$(test $$task = x200 && echo schema=datasets/schemas/jetclass2_unseen.yaml) || exit 1; done

experiment: $(PLAIN) $(CONTRASTIVE) tasks
	$(BIN)/python jobs/transfer.py datasets/tasks backbone=$(call listed,$(comma),$(PLAIN) $(CONTRASTIVE)) \
	  recipes=alpha=0:$(call listed,+,$(PLAIN)),alpha=0.1:$(call listed,+,$(CONTRASTIVE)) \
	  methods=probe,mlp,finetune,scratch,boosting sizes=0.1,1 seeds=1 train_jets=8000 evaluate_jets=8000 \
	  evaluate_split=test method.mlp.widths=64 method.mlp.depths=1 method.network.epochs=2 method.network.batch_size=64 \
	  method.network.micro_batches=2 method.network.min_steps=100 ray.object_store_gb=5 \
	  output=runs/experiment/transfer page=docs/results/transfer_simulated

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
