"""Imports everything that an engine needs. The import is slow, so it is done once, in the process from which workers
are forked.
"""

from __future__ import annotations

import importlib

from stages.sglang_engine import environment

environment.prepare()

# No code in this file uses the modules below, so import statements would look unused. Therefore, `import_module` loads
# the modules. The model registry also imports our model definitions. Without this loop, the other modules would be
# imported only when a scheduler is built.
for _module in (
    "sglang.srt.managers.scheduler",
    "sglang.srt.models.registry",
    "sglang.srt.layers.attention.torch_native_backend",
    "stages.sglang_engine.engine",
    "stages.sglang_engine.fed_engine",
    "stages.sglang_engine.parking",
    "stages.sglang_engine.sampler",
):
    importlib.import_module(_module)
