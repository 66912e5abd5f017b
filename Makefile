# make demo    everything from simulated scans to the report, in a few minutes on two CPU cores
# make table-renal-simulated    the renal paper's table on a simulated cohort: five contrasts, 60 cells
# make test    lint and the quick tests, in a few minutes, while you work
# make test-all    lint and every test, Snakemake's grid among them: before you propose a change, and in CI
# make test-backends    compares TensorFlow, JAX and PyTorch (if installed), and two devices with one; export to PyTorch
# make install, make install-grid    installed first by the above: the suite in .venv, for test-all also Snakemake in .venv-grid
# make install-nnunet    nnU-Net in .venv-nnunet, for python -m tools.run_nnunet
# make lock    rewrites requirements.lock and requirements-gpu.lock from requirements.txt (needs the internet)
# make audit   known vulnerabilities of the installed packages (needs the internet), and whether their versions are compatible
# make bench   measures time and memory; writes benchmarks/output/
PYTHON ?= python3
BIN := .venv/bin
DEMO := configs/renal_demo.yaml
TABLE := configs/renal_table_simulated.yaml
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: install install-grid install-nnunet lock demo table-renal-simulated test test-all test-backends audit bench clean

install: .venv/installed$(GPU)

# A separate file for GPU=1, so that a later GPU=1 installs what is missing.
LOCKS := requirements.lock $(if $(GPU),requirements-gpu.lock)
.venv/installed$(GPU): $(LOCKS)
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed; type: make PYTHON=python3.11') if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes $(addprefix -r ,$(LOCKS))
	@touch $@

# Versions that are locked stay unless requirements.txt changes them; rm requirements.lock first to renew all of them.
# The second lock lists only what the first one lacks. --universal: for every platform and Python from 3.11.
UV := .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-config \
	--no-emit-index-url --custom-compile-command "make lock"
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --disable-pip-version-check uv==0.13.9
	$(UV) requirements.txt --output-file requirements.lock
	$(UV) requirements-gpu.txt --constraint requirements.lock --output-file requirements-gpu.lock \
		$$(sed -n 's/^\([a-z0-9.-]*\)==.*/--no-emit-package \1/p' requirements.lock)

install-grid: .venv-grid/installed

.venv-grid/installed: requirements-grid.txt
	$(PYTHON) -m venv .venv-grid
	.venv-grid/bin/pip install --quiet --disable-pip-version-check -r requirements-grid.txt
	@touch $@

install-nnunet: .venv-nnunet/installed

.venv-nnunet/installed: requirements-nnunet.txt
	$(PYTHON) -m venv .venv-nnunet
	.venv-nnunet/bin/pip install --quiet --disable-pip-version-check -r requirements-nnunet.txt
	@touch $@

demo: install
	$(BIN)/python simulate_cohort.py --out runs/renal_demo/scans --subjects 18 --anatomy renal --seed 1 --jobs 2
	$(BIN)/python generate_constraint_maps.py --config $(DEMO) --jobs 2
	$(BIN)/python generate_h5_pretraining.py --config $(DEMO) --jobs 2
	$(BIN)/python constrained_contrastive_learning.py --config $(DEMO)
	$(BIN)/python finetune_segmentation.py --config $(DEMO)
	$(BIN)/python reproduce_tables.py --config $(DEMO)

table-renal-simulated: install
	$(BIN)/python simulate_cohort.py --out runs/renal_table_simulated/scans --subjects 24 --anatomy renal --seed 3 --shape 72 60 12 --jobs 2
	$(BIN)/python generate_constraint_maps.py --config $(TABLE) --jobs 2
	$(BIN)/python generate_h5_pretraining.py --config $(TABLE) --jobs 2
	$(BIN)/python constrained_contrastive_learning.py --config $(TABLE)
	$(BIN)/python finetune_segmentation.py --config $(TABLE)
	$(BIN)/python reproduce_tables.py --config $(TABLE)

# Two processes share the cores, so each computes in one thread.
test test-all: export OMP_NUM_THREADS = 1
test test-all: export TF_NUM_INTRAOP_THREADS = 1
test test-all: export TF_NUM_INTEROP_THREADS = 1
unexport PYTHONDONTWRITEBYTECODE  # cached byte code saves every later run a dozen seconds
test: TIER = -m "not long"
test-all: install-grid
test test-all: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal $(TIER)

test-backends: install
	$(BIN)/python -m pytest tests/test_backends.py tests/test_backend_trainings.py tests/training/test_devices.py \
		tests/models/test_to_torch.py tests/test_export_torch.py

# pip-audit runs in a separate environment, so that it audits the suite's packages and not its own.
audit: install
	$(BIN)/pip check
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	.venv-audit/bin/pip-audit --strict --path $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")

# Run all of them, even if some fail; those that miss a goal are named at the end.
bench: install
	@missed=; for file in benchmarks/bench_*.py; do echo "== $$file"; PYTHONPATH=. $(BIN)/python $$file || missed="$$missed $$file"; done; \
	if [ -n "$$missed" ]; then echo "goals missed in:$$missed"; exit 1; fi

clean:
	rm -rf runs/renal_demo runs/renal_table_simulated .pytest_cache .ruff_cache .hypothesis benchmarks/output
