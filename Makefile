# SPDX-License-Identifier: Apache-2.0
# Everything runs in .venv and .host/ComfyUI, which `make setup` makes (cached). COMFYUI_PATH=... uses another ComfyUI.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
RUN := .venv/bin/python
PORT ?= 8188
TOPIC ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-unit lint format locales serve bench figures clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup:  ## make .venv and fetch ComfyUI (cached)
	@"$(PYTHON)" tests/host/setup.py

ready:
	@"$(PYTHON)" tests/host/setup.py --quiet

.PHONY: ready

demo: ready  ## train a LoRA in a headless ComfyUI; before/after pictures and scores
	$(RUN) -m tools.demo $(ARGS)

test: ready  ## the whole test suite: unit, in-process ComfyUI, server
	$(RUN) -m pytest $(ARGS)

test-unit: ready  ## the tests that need no ComfyUI
	$(RUN) -m pytest -m "not comfy and not server" $(ARGS)

lint: ready  ## ruff, mypy, pydoclint
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	@mkdir -p .mypy_cache/src && ln -sfn ../.. .mypy_cache/src/graft
	$(RUN) -m mypy
	$(RUN) -m pydoclint.main --quiet trainers loaders samplers

format: ready  ## format the code and fix what ruff can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

locales: ready  ## write locales/ from the nodes' schemas
	$(RUN) -m tools.make_locales

serve: ready  ## ComfyUI with the pack, to open in a browser (PORT=8188)
	$(RUN) -m tests.host.server --port $(PORT) $(ARGS)

bench: ready  ## our trainer against ComfyUI's, side by side
	$(RUN) -m benchmarks.bench $(ARGS)

figures: ready  ## the project's promises as a table (TOPIC=skeleton)
	$(RUN) -m benchmarks.figures $(TOPIC) $(ARGS)

clean:  ## remove caches and out/; keeps .venv, .host and the states of a pretraining
	@[ ! -d out ] || find out -mindepth 1 -maxdepth 1 ! -name pretrain -exec rm -rf {} +
	rm -rf build *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -not -path "./.venv/*" -not -path "./.host/*" -prune -exec rm -rf {} +
