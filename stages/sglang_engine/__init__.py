"""Contains all code that touches SGLang's internals, which are pinned to the version in pyproject.toml.

Code that uses an engine for a stage belongs in `stages.thinker` and `stages.talker_ar`. The main modules, from the
outside in:

- `engine`: the one class the stages use: add a request, step, abort.
- `fed_engine`: an engine whose decode steps wait for input rows from another stage.
- `parking`: a scheduler in which requests wait, outside SGLang's batch, for the input of their next step.
- `scheduler`: SGLang's scheduler; its sockets to other processes are replaced by calls in this process.
- `prompt_rows`: the data of a prompt besides its token ids, cut into prefill chunks.
- `sampler`: sampling that follows the reference, repeatable by seed in any batch.
- `tool_calls`: SGLang's detectors of tool calls in a text.
- `reasoning_markers`: the markers of SGLang's detectors of reasoning.
- `models`, `rotary`: the model definitions.
- `float32_forms`: the parts of the models that torch computes if an engine on a GPU uses float32.
- `checkpoint_view`, `completeness`, `engine_config`, `dequantise`: the checkpoint in the form that SGLang reads.
- `arguments`, `environment`, `preload`, `process`, `process_groups`: the set-up of SGLang.
- `cpu_platform`, `cpu_kernels`, `decode_trace`: the platform plugin that runs the engine on a CPU, and makes it fast.
"""
