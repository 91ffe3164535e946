"""Simulates GPUs: torch, NVML and nvidia-smi describe the GPUs, but nothing can be computed on them.

On a machine without a GPU, SGLang then resolves its arguments, imports its CUDA modules and builds models on `meta` as
on a machine with a GPU. A process with a patched torch is useless for anything else, so the patches are applied in
child processes only:

- `machine`: the data: cards, MIG instances, and the devices that a process sees.
- `accelerator`: starts the child process, and has it run functions as on a given machine.
- `child`: the child itself, which forks for each function.
- `torch_cuda`, `nvml`, `driver`, `kernels`: the replacements in a child.
"""

from fake_gpu.accelerator import Accelerator, RunFailed
from fake_gpu.machine import H20, H100, H200, Card, Machine

__all__ = ["H20", "H100", "H200", "Accelerator", "Card", "Machine", "RunFailed"]
