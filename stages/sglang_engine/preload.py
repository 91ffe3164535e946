"""Imports everything an engine needs; slow, and done once in the process that workers are forked from."""

from __future__ import annotations

import importlib

from stages.sglang_engine import environment

environment.prepare()

# By name, since nothing here uses them. The model registry brings our model definitions, the rest what a scheduler
# imports only when it is built.
for _module in (
    "sglang.srt.managers.scheduler",
    "sglang.srt.models.registry",
    "sglang.srt.layers.attention.torch_native_backend",
    "stages.sglang_engine.engine",
    "stages.sglang_engine.fed_engine",
    "stages.sglang_engine.scheduler",
    "stages.sglang_engine.sampler",
):
    importlib.import_module(_module)
