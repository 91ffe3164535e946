"""Finds out how each layout in `configs/` would start on GPUs, by starting the layout on fake GPUs (`fake_gpu`).

- `checkpoints`: the kinds of checkpoints, plain and quantised, without their weights.
- `layouts`: the GPUs on which the stages of each layout are placed on each machine, and the settings of their engines.
- `engines`: resolves SGLang's arguments and builds the models, in a process on fake GPUs.
- `data`: defines the data that is sent to the process of `engines`, and the results that this process sends back.
- `resolution`: resolves the engines of all layouts.
"""
