# make install: a virtual environment in .venv; every other target makes it first when it is missing or stale.
PYTHON ?= python3
BIN := .venv/bin

# Tests start Python some hundred times: without this, each would compile the package again where the variable is set.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test check format docs gpu gpu-claim demo-base clean

install: .venv/installed

# Python's own pip may be years old: a new one takes half of the time. It compiles with one core, and everything: half of
# that is never imported, or seldom. Some packages carry files of newer Pythons, which do not compile here.
SELDOM_IMPORTED := /(tests?|testing|models|google|openai|anthropic)/
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --upgrade --constraint constraints.txt pip || true
	$(BIN)/pip install -qq --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -W ignore -m compileall -qq -j 0 -x '$(SELDOM_IMPORTED)' .venv/lib || true
	touch .venv/installed

demo: install
	$(BIN)/codetune demo

test: install
	$(BIN)/python -m pytest --numprocesses 5 --dist loadfile --no-loadscope-reorder

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses 5 --dist loadfile --no-loadscope-reorder

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Makes the pages of codetune/docs/commands again, from what --help says, and configs/ from the presets.
docs: install
	$(BIN)/python -m tests.command_pages

# GPU tests and benchmarks, less than ten minutes, with the Python that has a CUDA torch: make gpu PYTHON=python3.12
gpu:
	$(PYTHON) -m tests.performance.gpu

# The claim of the README on real rows in full size, ten minutes at most; the same command again adds what is missing:
# make gpu-claim DATA=rows MODEL=SmolLM2-135M EMBEDDER=all-mpnet-base-v2, with directories that hold evol-round*.json,
# a causal language model and a sentence-transformers model
gpu-claim:
	timeout 590 $(PYTHON) -m tests.performance.claim real claim --size gpu --seeds 5 --data $(DATA) --model $(MODEL) --embedder $(EMBEDDER)

# Makes codetune/demo/base again, some 15 minutes of one core: texts, then the pipeline's own train stage, then the export.
demo-base: install
	$(BIN)/python -m codetune.demo.pretrain demo-pretraining
	$(BIN)/codetune select -p demo-pretraining/codetune.yaml
	$(BIN)/codetune train -p demo-pretraining/codetune.yaml
	$(BIN)/python -m codetune.demo.pretrain --ship demo-pretraining
	rm -rf demo-pretraining

clean:
	rm -rf .venv codetune-demo
