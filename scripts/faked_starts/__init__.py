"""What a start of each layout in `configs/` comes to on GPUs that are not there (`fake_gpu`).

- `checkpoints`: the kinds of checkpoints, plain and quantised, without their weights.
- `layouts`: who sits where on which machine, and what the engines are told.
- `data`, `engines`: what SGLang makes of that; `engines` runs under fake GPUs.
- `resolution`: asks it about all of them.
"""
