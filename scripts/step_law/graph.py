"""The stage graph of Qwen3-Omni, in which stages of this package replace the stages that compute text and speech."""

from __future__ import annotations

from msgspec import structs

from stages.topology import QWEN3_OMNI
from step_law import options

_PACED = {
    "thinker": ("PacedThinker", options.ThinkerOptions),
    "talker_ar": ("PacedTalker", options.TalkerOptions),
    "code_predictor": ("PacedCodePredictor", options.CodePredictorOptions),
    "code2wav": ("PacedCode2Wav", options.Code2WavOptions),
}

STEP_LAW = structs.replace(
    QWEN3_OMNI,
    name="step-law",
    stages=tuple(
        structs.replace(spec, factory=f"step_law.stages:{_PACED[spec.name][0]}", options=_PACED[spec.name][1])
        if spec.name in _PACED
        else spec
        for spec in QWEN3_OMNI.stages
    ),
)
