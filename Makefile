# Everything runs in .venv, which the first command makes. On a machine with its own torch, set VENV.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
DATA ?= ../shared/data
MOVIELENS_DIR = build/movielens

export RECSYS_MTL_DATA ?= $(abspath $(DATA))
# Idle OpenMP workers must not burn the cores that others need; see the README.
export GOMP_SPINCOUNT ?= 10000

.PHONY: install check test test-slow bench bench-peers demo kuairand results clean

install: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A process per core, one thread each.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n auto

test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow -n auto

bench: install
	$(BIN)/python benchmarks/hashing.py
	$(BIN)/python benchmarks/encoding.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/comparison.py
	$(BIN)/python benchmarks/scoring.py --rows 200000 --pairs 600000
	$(BIN)/python benchmarks/experts.py
	$(BIN)/python benchmarks/balancing.py

# Needs 8 GB and, on one idle core, about half an hour.
bench-peers: install
	$(BIN)/python benchmarks/comparison.py --quality --rows 1000000

demo: install
	$(BIN)/python data/movielens.py --out $(MOVIELENS_DIR) $(if $(ML100K),--local $(ML100K))
	$(BIN)/python data/demo.py --data $(MOVIELENS_DIR) --out build/demo

kuairand: install
	$(BIN)/python data/kuairand.py --out build/kuairand

# Needs the real data and, with all seeds, some seven hours of one core; called again, it goes on.
results: install
	$(BIN)/python data/results.py --out build/results --document docs/results.md

clean:
	rm -rf build .venv
