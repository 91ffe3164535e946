# `make help` lists what there is to do.
python := .venv/bin/python
checkpoint ?= demo/qwen3-omni-demo
random := checkpoints/tiny
port ?= 8008
gpus ?= 1xH100-80GB
sgl_omni = $(python) -m omni_pipeline.cli
serve = $(sgl_omni) serve --model-path $(checkpoint) --port $(port) $(args)

.DEFAULT_GOAL := help
.PHONY: help install serve serve-random serve-split serve-colocated serve-text serve-fused plan bench demo-model judge test lint checkpoint clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 17

install:  ## Make .venv (the heavy part is built once and shared by all checkouts)
	@scripts/install.sh

checkpoint: $(random)/config.json  ## Make the small random checkpoint that tests and measurements use

$(random)/config.json: scripts/make_tiny_checkpoint.py | install
	$(python) scripts/make_tiny_checkpoint.py --out $(random)

serve: install  ## Serve the demo model at port 8008, text and speech (port=… for another, checkpoint=…, args=… for flags)
	$(serve)

serve-random: install checkpoint  ## Serve a random checkpoint instead: all of the architecture, and nonsense
	$(MAKE) serve checkpoint=$(random)

serve-split: install  ## As serve, but said in a file: one process for each of the nine stages
	$(serve) --config configs/qwen3_omni_speech.yaml

serve-colocated: install  ## Text and speech, what would be on a GPU in one process
	$(serve) --config configs/qwen3_omni_colocated.yaml

serve-text: install  ## Text only, one process for each of the six stages
	$(serve) --text-only

serve-fused: install  ## Text only, all stages in one process
	$(serve) --config configs/qwen3_omni_mmsu.yaml --text-only

plan: install  ## What the 30B model takes of a GPU (gpus=… for others, args=… for serve's flags)
	$(sgl_omni) plan --model-path tests/data/qwen3_omni_30b --gpus $(gpus) $(or $(args),--colocate)

bench: install  ## Measure text and speech of the server at port 8008 (port=… for another, args=… for flags)
	for output in text speech; do $(sgl_omni) bench --url http://127.0.0.1:$(port) --output $$output $(args) || exit; done

demo-model: install  ## Train a model that really sees, hears and speaks; goes on where it was stopped (args=… for flags)
	$(python) scripts/make_demo_model.py $(args)

judge: install  ## Count the right answers of the demo model at port 8008 (port=… for another, args=… for flags)
	$(python) scripts/judge_demo_model.py --url http://127.0.0.1:$(port) $(args)

test: install  ## Run the tests (args=… for pytest's arguments)
	$(python) -m pytest $(args)

lint: install  ## Check style, formatting and types
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

clean:  ## Remove what was built in this checkout (the shared environment stays)
	rm -rf .venv checkpoints build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
