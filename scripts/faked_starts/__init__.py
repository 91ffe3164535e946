"""Finds out how each layout in `configs/` would start on GPUs, by starting the layout on fake GPUs (`fake_gpu`).

- `checkpoints`: the kinds of checkpoints, plain and quantised, without their weights.
- `layouts`: where the stages of each layout are placed on each machine, and the engines' settings.
- `data`, `engines`: SGLang's resolved arguments and built models; `engines` runs under fake GPUs.
- `resolution`: resolves the engines of all layouts.
"""
