# make demo     the main job, from nothing: set-up, a generated source, a migration, three answers   (ROWS=5000 FRESH=)
# make test     set-up, formatting, lint, types, import direction, tests
# make test-long   tests that take minutes for one corner, which `make test` leaves out
# make audit    known holes in the locked packages, where an advisory service can be reached
# make setup    set-up alone; the command is then .venv/bin/cryptique-rag
# make up       leave it running: server, worker, deployments and schedules on this machine; again: repairs
# make down     stop what `make up` started
# make ui       the Prefect UI with every local run
# make bench    all figures of a migration beside their targets, into bench/   (ROWS=871781 SIZES=10000,50000,200000)
# make chaos    a migration of 20,000 rows under 50 random kills of worker, Prefect server and mongod   (SEED=1)
# make bench-backups  backups and restores beside bare loops, in S3   (DOCUMENTS=50000)
# make eval     how well questions are answered, each way of searching beside the others   (OUT=bench/retrieval)
# make bench-search   the search index at full size beside a plain scan   (ROWS=871781)
# make bench-http   the service under a mixed load, then under ten times that   (SECONDS=300 RATE=200 DOCUMENTS=50000)
# make lock     new versions into the lock files (needs a package index)
# make clean    forget the local servers' data and the virtual environment
.PHONY: demo test test-long check audit setup up down ui bench bench-backups bench-search bench-http eval chaos lock clean

PYTHON ?= python3
ROWS ?= 5000
SEED ?= 1
FRESH ?=
SIZES ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

demo: $(READY)
	@$(BIN)/cryptique-rag demo --rows $(ROWS) $(if $(FRESH),--fresh)

test: check
	$(BIN)/pytest $(PYTEST_ARGS)

test-long: $(READY)
	$(BIN)/pytest -m long $(PYTEST_ARGS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/python -m deployments.audit secrets
	@$(BIN)/python -m deployments.audit dependencies || test $$? -eq 3

audit: $(READY)
	@$(BIN)/python -m deployments.audit dependencies

setup: $(READY)
	@echo "ready: $(BIN)/cryptique-rag --help"

up: $(READY)
	@$(BIN)/cryptique-rag up

down: $(READY)
	@$(BIN)/cryptique-rag down

ui: $(READY)
	@$(BIN)/cryptique-rag ui

bench: ROWS := 871781
bench: $(READY)
	@$(BIN)/python -m benchmarks.migration --rows $(ROWS) $(if $(SIZES),--sizes $(SIZES)) --out bench

$(READY): requirements.lock requirements-uv.lock pyproject.toml deployments/set_up.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh deployments/set_up.sh

bench-backups: DOCUMENTS := 50000
bench-backups: $(READY)
	@$(BIN)/python -m benchmarks.backups --documents $(DOCUMENTS)

bench-search: ROWS := 871781
bench-search: $(READY)
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.search --rows $(ROWS)

bench-http: DOCUMENTS := 50000
bench-http: SECONDS := 300
bench-http: RATE := 200
bench-http: $(READY)
	@$(BIN)/python -m benchmarks.http_load --documents $(DOCUMENTS) --seconds $(SECONDS) --rate $(RATE)

eval: OUT := bench/retrieval
eval: $(READY)
	@$(BIN)/python -m benchmarks.evaluation --out $(OUT)

chaos: $(READY)
	@$(BIN)/python -m tests.chaos --seed $(SEED)

lock: $(READY)
	printf 'uv\n' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --no-header - -o requirements-uv.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-annotate --no-header --all-extras --group dev pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-annotate --no-header --constraint requirements.lock --extra server --extra generativeai --group build \
		pyproject.toml -o requirements-server.lock

clean:
	@if [ -x $(BIN)/cryptique-rag ]; then $(BIN)/cryptique-rag stop; fi
	rm -rf $(VENV) .cryptique
