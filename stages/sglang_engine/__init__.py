"""Everything that touches SGLang's internals, pinned to the version in pyproject.toml.

The modules, from the outside in:

- `engine`: the one class the stages use: add a request, step, abort.
- `scheduler`: SGLang's own scheduler with its input and output ends replaced, since ours run in the same process.
- `prompt_rows`: what a request brings besides token ids, sliced for each prefill chunk.
- `sampler`: sampling as the reference does it, repeatable by seed in any batch.
- `models`, `rotary`: the model definitions.
- `float32_forms`: what of them is computed in torch where an engine on a GPU is to be in float32.
- `arguments`, `environment`, `preload`, `process`, `process_groups`, `completeness`: how SGLang is set up.
- `cpu_platform`, `cpu_kernels`: the platform plugin that lets all of it run without CUDA, and quickly.
"""
