"""GPUs that are not there: torch, NVML and nvidia-smi describe them, and nothing can be computed on them.

With them SGLang resolves its arguments, imports its CUDA modules and builds models on `meta` as it would on a GPU, on a
machine that has none. Patching torch poisons a process, so all of it happens in children:

- `machine`: the data: cards, MIG instances, and which of them a process sees.
- `accelerator`: starts the child process, and asks it to run a function under a machine.
- `child`: the child itself, which forks for each function.
- `torch_cuda`, `nvml`, `driver`, `kernels`: what is replaced in a child.
"""

from fake_gpu.accelerator import Accelerator, RunFailed
from fake_gpu.machine import H20, H100, H200, Card, Machine

__all__ = ["H20", "H100", "H200", "Accelerator", "Card", "Machine", "RunFailed"]
