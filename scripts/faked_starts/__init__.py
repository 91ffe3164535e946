"""What a start of an engine comes to on GPUs that are not there (`fake_gpu`).

- `checkpoints`: the kinds of checkpoints: plain weights and those quantised.
- `engines`: what SGLang makes of an engine's start; it runs under fake GPUs.
"""
