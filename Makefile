# `make help` lists what there is to do.
python := .venv/bin/python
checkpoint := checkpoints/tiny
port ?= 8008

.DEFAULT_GOAL := help
.PHONY: help install serve serve-split serve-colocated serve-text serve-fused bench test lint checkpoint clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

install:  ## Make .venv (the heavy part is built once and shared by all checkouts)
	@scripts/install.sh

checkpoint: $(checkpoint)/config.json  ## Make the small random checkpoint that the server and the tests use

$(checkpoint)/config.json: scripts/make_tiny_checkpoint.py | install
	$(python) scripts/make_tiny_checkpoint.py --out $(checkpoint)

serve: install checkpoint  ## Serve the small checkpoint at port 8008, text and speech (port=… for another)
	$(python) -m omni_pipeline.cli serve --model-path $(checkpoint) --port $(port)

serve-split: serve  ## The same: one process for each of the nine stages

serve-colocated: install checkpoint  ## Text and speech, what would be on a GPU in one process
	$(python) -m omni_pipeline.cli serve --model-path $(checkpoint) --config configs/qwen3_omni_colocated.yaml --port $(port)

serve-text: install checkpoint  ## Text only, one process for each of the six stages
	$(python) -m omni_pipeline.cli serve --model-path $(checkpoint) --text-only --port $(port)

serve-fused: install checkpoint  ## Text only, all stages in one process
	$(python) -m omni_pipeline.cli serve --model-path $(checkpoint) --config configs/qwen3_omni_mmsu.yaml --port $(port)

bench: install  ## Measure text and speech of the server at port 8008 (port=… for another, args=… for flags)
	for output in text speech; do $(python) -m omni_pipeline.cli bench --url http://127.0.0.1:$(port) --output $$output $(args) || exit; done

test: install  ## Run the tests (args=… for pytest's arguments)
	$(python) -m pytest $(args)

lint: install  ## Check style, formatting and types
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

clean:  ## Remove what was built in this checkout (the shared environment stays)
	rm -rf .venv checkpoints build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
