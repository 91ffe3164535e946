"""Simulates GPUs: torch, NVML and nvidia-smi report GPUs that do not exist. Nothing can be computed on these GPUs.

So on a machine without a GPU, SGLang resolves its arguments, imports its CUDA modules and builds models on the device
`meta` in the same way as on a machine with GPUs. A process with a patched torch cannot be used for anything else, so
the patches are applied only in child processes. The modules:

- `machine`: describes cards, MIG instances, and the devices that a process can use.
- `accelerator`: starts the child process, which runs functions as if on a given machine.
- `child`: the child itself, which forks for each function.
- `torch_cuda`, `nvml`, `driver`, `kernels`: the replacements in a child.
"""

from fake_gpu.accelerator import Accelerator, RunFailed
from fake_gpu.machine import H20, H100, H200, Card, Machine

__all__ = ["H20", "H100", "H200", "Accelerator", "Card", "Machine", "RunFailed"]
