# make tables   train, distil, measure and render everything (make tables PROFILE=smoke: the quick profile)
# make test     run the tests
# make lint     format and type checks alone
# make lock     bring requirements.lock up to date with pyproject.toml; keeps the pins that still fit (needs uv)

PYTHON  ?= python3
PROFILE ?=

BIN   := .venv/bin
READY := .venv/installed
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: tables test lint lock

tables: $(READY)
	$(BIN)/snakemake --cores all $(if $(PROFILE),--config profile=$(PROFILE))

test: $(READY)
	$(ONE_THREAD) $(BIN)/pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflows/rules
	$(BIN)/snakemake --lint

lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --all-extras pyproject.toml -o requirements.lock

# written last: an interrupted installation starts again from nothing
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fewstep needs Python 3.11 or newer, and \
	$(PYTHON) is %d.%d; name another: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	touch $@
