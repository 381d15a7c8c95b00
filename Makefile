# Everything from a clean clone: make demo, make test. Needs Python 3.11 or 3.12, make and gcc.
PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || echo 2)
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
UV := 0.13.8

.PHONY: demo test lint bench docs lock clean

demo: .venv/ready
	snakemake --cores $(CORES)
	snakemake --report results/report.html
	@cat results/tables/shapes.md
	@echo "Report: results/report.html   Galleries: results/figures/shapes/galleries/*/index.html"

test: .venv/ready
	OMP_NUM_THREADS=1 pytest -n $(CORES) --dist loadfile

lint: .venv/ready
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	mypy wsss_core

bench: .venv/ready
	python -m benchmarks

docs: .venv/ready
	python -m wsss_core.config.document

lock: .venv/ready
	uv pip compile pyproject.toml --all-extras --generate-hashes --universal --fork-strategy fewest --python-version 3.11 \
	  --no-annotate --no-header -q -o requirements.lock
	python tests/environments.py --write

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else "Python 3.11 or 3.12 is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --require-hashes -r requirements.lock
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf .venv .snakemake build *.egg-info
