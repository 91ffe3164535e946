"""Environment variables that SGLang reads while it is imported; call `prepare` before anything of SGLang is."""

from __future__ import annotations

import logging
import os


def prepare() -> None:
    """Set what the engine needs, and the defaults that an operator may override by setting them first."""
    # Only our models: importing SGLang's whole model zoo takes seconds and memory in every worker.
    os.environ["SGLANG_EXTERNAL_MODEL_PACKAGE"] = "stages.sglang_engine.models"
    # DeepGEMM stays available for FP8; only its compile-everything session at start is off.
    os.environ.setdefault("SGLANG_JIT_DEEPGEMM_PRECOMPILE", "0")
    # What it logs is about its own server: flags that ours does not have, choices that ours does not offer.
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        logging.getLogger("sglang").setLevel(logging.ERROR)
