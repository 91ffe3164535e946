"""The switch that makes a CPU treat memory as CUDA does, for tests and developers.

Our CPU kernels allocate what they give, and so does a recorded step. CUDA's kernels write into their inputs; its graphs
run at padded batch sizes and overwrite what they gave the time before. With the switch on, the CPU does the same, so
that a tensor which is kept too long, or handed out without a copy, shows in the tests.
"""

from __future__ import annotations

import os

from omni_pipeline.errors import StartupError

VARIABLE = "OMNI_CUDA_HABITS"


def enabled() -> bool:
    """Whether the environment asks for it; read by whatever is built, when it is built.

    Raises:
        StartupError: The variable is neither ``1`` nor ``0`` nor empty.
    """
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise StartupError(f"{VARIABLE} is {value!r}; set it to 1 to make the CPU treat memory as CUDA does, or to 0")
    return value == "1"
