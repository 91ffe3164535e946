"""Everything that touches SGLang's internals, pinned to the version in pyproject.toml.

What a stage does with an engine belongs in `stages.thinker` and `stages.talker_ar`. The modules, from the outside in:

- `engine`: the one class the stages use: add a request, step, abort.
- `fed_engine`: an engine whose decode steps wait for input rows from another stage.
- `scheduler`: SGLang's scheduler; its sockets to other processes are replaced by calls in this process.
- `prompt_rows`: the parts of a prompt besides token ids, cut to prefill chunks.
- `sampler`: sampling that follows the reference, repeatable by seed in any batch.
- `models`, `rotary`: the model definitions.
- `float32_forms`: the parts of the models that torch computes if an engine on a GPU uses float32.
- `checkpoint_view`, `completeness`, `engine_config`, `dequantise`: what SGLang reads of a checkpoint, and how.
- `arguments`, `environment`, `preload`, `process`, `process_groups`: how SGLang is set up.
- `cpu_platform`, `cpu_kernels`, `decode_trace`: the platform plugin that runs all of this on a CPU, and fast.
"""
