"""Sets the environment variables that SGLang reads on import; call `prepare` before importing any part of SGLang."""

from __future__ import annotations

import logging
import os


def bind_cpus(ranks: int) -> None:
    """Assign cores to each of several ranks on the CPU, as SGLang requires, unless the operator has assigned them.

    Each rank gets an equal share of the cores that this process may use; if there are too few, ranks share cores.
    """
    cpus = sorted(os.sched_getaffinity(0))
    share = max(1, len(cpus) // ranks)
    shares = [[cpus[(rank * share + index) % len(cpus)] for index in range(share)] for rank in range(ranks)]
    binding = "|".join(",".join(map(str, part)) for part in shares)
    os.environ.setdefault("SGLANG_CPU_OMP_THREADS_BIND", binding)


def prepare() -> None:
    """Set the variables that the engine needs, and defaults that an operator may override by setting them first."""
    # Register only our models: importing SGLang's whole model zoo takes seconds and memory in every worker.
    os.environ["SGLANG_EXTERNAL_MODEL_PACKAGE"] = "stages.sglang_engine.models"
    # DeepGEMM stays available for FP8. Only the compilation of all its kernels at the start is turned off.
    os.environ.setdefault("SGLANG_JIT_DEEPGEMM_PRECOMPILE", "0")
    # SGLang's log lines are about SGLang's own server, with flags and choices that this server does not have.
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        logging.getLogger("sglang").setLevel(logging.ERROR)
