"""The laws: the times of the steps of Qwen3-Omni-30B-A3B, as functions of the contents of the batch.

They are the laws of `sgl-omni simulate`. `stages.simulation.laws` has their source and their limits.
"""

from __future__ import annotations

from omni_pipeline.contract.simulation import StepLaw as Law
from stages.simulation.laws import PUBLISHED

__all__ = ["PREDICTOR", "TALKER", "THINKER", "VOCODER", "Law"]

THINKER = PUBLISHED.laws["thinker"]
TALKER = PUBLISHED.laws["talker_ar"]
PREDICTOR = PUBLISHED.laws["code_predictor"]
VOCODER = PUBLISHED.laws["code2wav"]
