"""Reads a switch for tests and developers. With the switch on, code on a CPU treats memory as CUDA code does.

Our CPU kernels allocate new memory for their results, and so does a step that is recorded on a CPU. CUDA kernels write
into their inputs, and CUDA graphs run at padded batch sizes and overwrite their previous results. With the switch on,
the code on a CPU does the same. Tests then reveal a tensor that is kept too long or handed out without a copy.
"""

from __future__ import annotations

import os

from omni_pipeline.errors import StartupError

VARIABLE = "OMNI_CUDA_HABITS"


def enabled() -> bool:
    """Whether the environment turns the switch on. Engines and stages read the switch when they are built.

    Raises:
        StartupError: The variable is neither ``1`` nor ``0`` nor empty.
    """
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise StartupError(f"{VARIABLE} is {value!r}; set it to 1 to make the CPU treat memory as CUDA does, or to 0")
    return value == "1"
