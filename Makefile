# `make help` lists what there is to do.
python := .venv/bin/python
demo := demo/qwen3-omni-demo
checkpoint := checkpoints/tiny
model ?= $(demo)
port ?= 8008

.DEFAULT_GOAL := help
.PHONY: help install serve serve-random serve-split serve-colocated serve-text serve-fused bench judge demo-model test lint checkpoint clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

install:  ## Make .venv (the heavy part is built once and shared by all checkouts)
	@scripts/install.sh

checkpoint: $(checkpoint)/config.json  ## Make the small random checkpoint that the tests use

$(checkpoint)/config.json: scripts/make_tiny_checkpoint.py | install
	$(python) scripts/make_tiny_checkpoint.py --out $(checkpoint)

serve: install  ## Serve the demo model at port 8008, text and speech (port=… for another, model=… for another checkpoint)
	$(python) -m omni_pipeline.cli serve --model-path $(model) --port $(port)

serve-random: install checkpoint  ## Serve the small random checkpoint instead
	$(python) -m omni_pipeline.cli serve --model-path $(checkpoint) --port $(port)

serve-split: serve  ## The same: one process for each of the nine stages

serve-colocated: install  ## Text and speech, what would be on a GPU in one process
	$(python) -m omni_pipeline.cli serve --model-path $(model) --config configs/qwen3_omni_colocated.yaml --port $(port)

serve-text: install  ## Text only, one process for each of the six stages
	$(python) -m omni_pipeline.cli serve --model-path $(model) --text-only --port $(port)

serve-fused: install  ## Text only, all stages in one process
	$(python) -m omni_pipeline.cli serve --model-path $(model) --config configs/qwen3_omni_mmsu.yaml --port $(port)

bench: install  ## Measure text and speech of the server at port 8008 (port=… for another, args=… for flags)
	for output in text speech; do $(python) -m omni_pipeline.cli bench --url http://127.0.0.1:$(port) --output $$output $(args) || exit; done

judge: install  ## Ask the demo model at port 8008 what it has not seen, and count its right answers (args=… for flags)
	$(python) scripts/judge_demo_model.py --url http://127.0.0.1:$(port) $(args)

demo-model: install  ## Train the demo model anew, in hours; goes on where it was stopped (args=… for flags)
	$(python) scripts/make_demo_model.py $(args)

test: install  ## Run the tests (args=… for pytest's arguments)
	$(python) -m pytest $(args)

lint: install  ## Check style, formatting and types
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

clean:  ## Remove what was built in this checkout (the shared environment stays)
	rm -rf .venv checkpoints build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
