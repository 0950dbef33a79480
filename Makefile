# make install: a virtual environment in .venv; every other target makes it first when it is missing or stale.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test check format demo-base clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch .venv/installed

demo: install
	$(BIN)/codetune demo

test: install
	$(BIN)/python -m pytest --numprocesses 2

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses 2

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv codetune-demo
