# `make demo` and `make test` set up whatever is missing first.
#   make demo ARGS="--seconds 60"     all of it on this machine
#   make test ARGS="-m 'not slow'"    checks and tests, in several processes; ARGS="-n 0": in one
#   make storm ARGS="--kills 100"     exactly once, under fire
#   make storm-trainer                to the bit the losses of a calm run, under kill -9
#   make bench NAME=...               one benchmark of bench/
PYTHON ?=
ARGS ?=
NAME ?=
BIN := .venv/bin
PACKAGES := dedup_cache stream trainer serving recd
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate pyproject.toml

.PHONY: help setup demo test storm storm-trainer lint bench lock clean

help:
	@sed -n 's/^#   //p' Makefile

setup:
	@PYTHON="$(PYTHON)" scripts/setup

demo: setup
	@$(BIN)/recd demo $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest -n auto --dist loadgroup $(ARGS)

# Workers, broker and Redis are killed under traffic; then the audit. `make storm ARGS="--help"`.
storm: setup
	@$(BIN)/python -m tests.storm $(ARGS)

# Ranks are killed in training, checkpointing and publishing; then their losses against a calm run's.
storm-trainer: setup
	@$(BIN)/python -m tests.storm_trainer $(ARGS)

bench: setup
	@$(BIN)/python -m bench.$(or $(NAME),$(error which one? make bench NAME=... of: $(filter-out __init__,$(basename $(notdir $(wildcard bench/*.py)))))) $(ARGS)

# Renew the pins: `make lock ARGS=--upgrade`, then the tests.
lock: setup
	$(LOCK) $(ARGS) constraints/cpu.in --override constraints/cpu-overrides.txt --output-file constraints/cpu.txt
	$(LOCK) $(ARGS) constraints/gpu.in --output-file constraints/gpu.txt

clean:
	rm -rf .venv build dist *.egg-info var .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
