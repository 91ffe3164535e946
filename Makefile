# `make help` lists the targets.
python := .venv/bin/python
checkpoint ?= demo/qwen3-omni-demo
random := checkpoints/tiny
port ?= 8008
gpus ?= 1xH100-80GB
sgl_omni = $(python) -m omni_pipeline.cli
serve = $(sgl_omni) serve --model-path $(checkpoint) --port $(port) $(args)

.DEFAULT_GOAL := help
.PHONY: help install serve serve-random serve-split serve-colocated serve-text serve-fused plan bench demo-model judge test test-clients pictures lint checkpoint clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 17

install:  ## Make .venv (the large dependencies are installed once and shared by all checkouts)
	@scripts/install.sh

checkpoint: $(random)/config.json  ## Make the small random checkpoint for tests and measurements

$(random)/config.json: scripts/make_tiny_checkpoint.py | install
	$(python) scripts/make_tiny_checkpoint.py --out $(random)

serve: install  ## Serve the demo model with text and speech at port 8008 (change with port=…, checkpoint=…, args=FLAGS)
	$(serve)

serve-random: install checkpoint  ## Serve a random checkpoint instead: the whole architecture, but nonsense answers
	$(MAKE) serve checkpoint=$(random)

serve-split: install  ## Like serve, with a layout file: one process for each of the nine stages
	$(serve) --config configs/qwen3_omni_speech.yaml

serve-colocated: install  ## Text and speech, with all stages that could use a GPU in one process
	$(serve) --config configs/qwen3_omni_colocated.yaml

serve-text: install  ## Text only, one process for each of the six stages
	$(serve) --text-only

serve-fused: install  ## Text only, all stages in one process
	$(serve) --config configs/qwen3_omni_mmsu.yaml --text-only

plan: install  ## Show how much of a GPU the 30B model needs (gpus=… for other GPUs, args=… for flags of serve)
	$(sgl_omni) plan --model-path tests/data/qwen3_omni_30b --gpus $(gpus) $(or $(args),--colocate)

bench: install  ## Measure text and speech of the server at port 8008 (change with port=…; args=… for flags)
	for output in text speech; do $(sgl_omni) bench --url http://127.0.0.1:$(port) --output $$output $(args) || exit; done

demo-model: install  ## Train a small model that sees, hears and speaks; continues where it was stopped (args=… for flags)
	$(python) scripts/make_demo_model.py $(args)

judge: install  ## Count right answers of the demo model at port 8008 (change with port=…; args=… for flags)
	$(python) scripts/judge_demo_model.py --url http://127.0.0.1:$(port) $(args)

test: install  ## Run all tests, on two cores (args=… for one pytest with these arguments)
	@scripts/run_tests.sh $(args)

test-clients: install  ## Run the tests with client libraries and a browser, in an environment of their own
	libraries=$$(scripts/install_clients.sh) && browser=$$(scripts/install_browser.sh) && \
	OMNI_CLIENT_LIBRARIES=$$libraries OMNI_BROWSER=$$browser $(python) -m pytest tests/clients $(args)

pictures: install  ## Make the pictures of the playground in docs/ again, from the real page
	$(MAKE) test-clients args="-k readme"
	cp build/playground/readme.png docs/playground.png
	cp build/playground/readme.webp docs/playground.webp

lint: install  ## Check style, formatting and types
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

clean:  ## Remove build products of this checkout (the shared environment stays)
	rm -rf .venv checkpoints build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
