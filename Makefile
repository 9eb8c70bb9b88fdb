# One word each: demo, test, test-all, lint, bench. Every target makes the environment it needs.
PYTHON   ?= $(firstword $(foreach v,3.11 3.12 3.13,$(shell command -v python$(v) 2>/dev/null)))
PIP_ARGS ?=
EXTRAS   ?= dev
BIN      := .venv/bin
OUT      ?= demo-out
PEERS    ?= bench-peers

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format bench bench-peers clean

help:
	@echo "make demo      the whole story on the built-in world (a few minutes)"
	@echo "make test      all tests but the slow proofs"
	@echo "make test-all  all tests"
	@echo "make lint      format, lint, types and the floors of the house"
	@echo "make bench     reader and training benchmarks on the built-in world"
	@echo "make bench-peers  training beside other libraries, each in its own environment (an hour)"

.venv/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no python3.11, python3.12 or python3.13 found; name one: make PYTHON=/path/to/python"; exit 1; }
	@test -e $@ || rm -rf .venv
	@rm -f $@
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]' || { rm -rf .venv; exit 1; }
	@touch $@

demo: .venv/.ready
	@$(BIN)/prerank demo --out $(OUT)

test: .venv/.ready
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

test-all: .venv/.ready
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: .venv/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.ready
	$(BIN)/prerank bench data
	$(BIN)/prerank bench train

bench-peers: .venv/.ready
	$(BIN)/prerank bench peers --out $(PEERS)

clean:
	rm -rf .venv demo-out bench-peers .mypy_cache .pytest_cache .ruff_cache .hypothesis
