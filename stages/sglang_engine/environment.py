"""Environment variables that SGLang reads while it is imported; call `prepare` before anything of SGLang is."""

from __future__ import annotations

import logging
import os


def bind_cpus(ranks: int) -> None:
    """Say which cores each of several ranks on the CPU takes, unless the operator has: SGLang wants to be told.

    Each has an equal share of those that this process may use; where there are too few, ranks share them.
    """
    cpus = sorted(os.sched_getaffinity(0))
    share = max(1, len(cpus) // ranks)
    shares = [[cpus[(rank * share + index) % len(cpus)] for index in range(share)] for rank in range(ranks)]
    binding = "|".join(",".join(map(str, part)) for part in shares)
    os.environ.setdefault("SGLANG_CPU_OMP_THREADS_BIND", binding)


def prepare() -> None:
    """Set what the engine needs, and the defaults that an operator may override by setting them first."""
    # Only our models: importing SGLang's whole model zoo takes seconds and memory in every worker.
    os.environ["SGLANG_EXTERNAL_MODEL_PACKAGE"] = "stages.sglang_engine.models"
    # DeepGEMM stays available for FP8; only its compile-everything session at start is off.
    os.environ.setdefault("SGLANG_JIT_DEEPGEMM_PRECOMPILE", "0")
    # What it logs is about its own server: flags that ours does not have, choices that ours does not offer.
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        logging.getLogger("sglang").setLevel(logging.ERROR)
