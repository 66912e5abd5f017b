# make demo    everything from simulated scans to the report, in a few minutes on two CPU cores
# make test    lint and all tests
# make bench   time and memory, written to benchmarks/output/
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= configs/renal_demo.yaml
WORK ?= runs/renal_demo
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: install demo test bench clean

install: .venv/installed

.venv/installed: requirements.txt
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed; type: make PYTHON=python3.11') if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt $(if $(GPU),"tensorflow[and-cuda]")
	@touch $@

demo: install
	$(BIN)/python simulate_cohort.py --out $(WORK)/scans --subjects 18 --anatomy renal --seed 1 --jobs 2
	$(BIN)/python generate_constraint_maps.py --config $(CONFIG) --jobs 2
	$(BIN)/python generate_h5_pretraining.py --config $(CONFIG) --jobs 2
	$(BIN)/python constrained_contrastive_learning.py --config $(CONFIG)
	$(BIN)/python finetune_segmentation.py --config $(CONFIG)
	$(BIN)/python reproduce_tables.py --config $(CONFIG)

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

bench: install
	for file in benchmarks/bench_*.py; do PYTHONPATH=. $(BIN)/python $$file || exit 1; done

clean:
	rm -rf runs .pytest_cache .ruff_cache .hypothesis benchmarks/output
