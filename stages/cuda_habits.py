"""Reads a switch that tests and developers can set. If the switch is on, code on a CPU treats memory as CUDA code does.

Usually, our CPU kernels and the steps recorded on a CPU allocate new memory for their results. CUDA kernels write into
their inputs. CUDA graphs run at padded batch sizes and overwrite their previous results. With the switch on, the code
on a CPU behaves like CUDA kernels and graphs. Tests then find a tensor that is kept too long, or that is returned
without a copy.
"""

from __future__ import annotations

import os

from omni_pipeline.errors import StartupError

VARIABLE = "OMNI_CUDA_HABITS"


def enabled() -> bool:
    """Whether the environment turns the switch on. Engines and stages read the switch once, when they are built.

    Raises:
        StartupError: The variable is neither ``1`` nor ``0`` nor empty.
    """
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise StartupError(
            f"{VARIABLE} is {value!r}, but it must be 0 or 1. With 1, code on the CPU reuses and overwrites memory as "
            "CUDA code does. With 0, code on the CPU does not do this."
        )
    return value == "1"
