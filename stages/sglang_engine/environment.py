"""Sets the environment variables that SGLang reads on import; call `prepare` before importing any part of SGLang."""

from __future__ import annotations

import logging
import os


def bind_cpus(ranks: int) -> None:
    """Assign cores to each rank if several ranks run on the CPU, because SGLang requires this. If the operator has
    assigned cores, do nothing.

    Each rank gets the same number of the cores that this process is allowed to use. If there are fewer cores than
    ranks, several ranks use the same core.
    """
    cpus = sorted(os.sched_getaffinity(0))
    share = max(1, len(cpus) // ranks)
    shares = [[cpus[(rank * share + index) % len(cpus)] for index in range(share)] for rank in range(ranks)]
    binding = "|".join(",".join(map(str, part)) for part in shares)
    os.environ.setdefault("SGLANG_CPU_OMP_THREADS_BIND", binding)


def prepare() -> None:
    """Set the variables that the engine needs. Some of the values are only defaults: a default does not replace a value
    that the operator has set.
    """
    # Register only our models. Importing all of SGLang's models would take seconds, and memory in every worker.
    os.environ["SGLANG_EXTERNAL_MODEL_PACKAGE"] = "stages.sglang_engine.models"
    # DeepGEMM stays available for FP8. This variable only prevents SGLang from compiling all kernels of DeepGEMM at the
    # start.
    os.environ.setdefault("SGLANG_JIT_DEEPGEMM_PRECOMPILE", "0")
    # Without this variable, SGLang's detectors leave out calls of unknown functions, and the text of these calls would
    # be lost.
    os.environ["SGLANG_FORWARD_UNKNOWN_TOOLS"] = "1"
    # SGLang's log lines are about SGLang's own server. They mention flags and choices that this server does not have.
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        logging.getLogger("sglang").setLevel(logging.ERROR)
