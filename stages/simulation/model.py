"""The simulated stages of Qwen3-Omni, together."""

from __future__ import annotations

from collections.abc import Collection

from omni_pipeline.contract.simulation import SimulatedRequest, SimulationModel
from stages.playback import FRAME_SECONDS
from stages.simulation.code_predictor import CodePredictor
from stages.simulation.laws import PUBLISHED
from stages.simulation.preparing import Aggregate, Decode, Encoder, Preprocessing
from stages.simulation.talker import Talker
from stages.simulation.thinker import Thinker
from stages.simulation.vocoder import Vocoder


def route(request: SimulatedRequest) -> Collection[str]:
    """The stages that a request passes through."""
    pictures = ("image_encoder",) if request.media_tokens else ()
    speech = ("talker_ar", "code_predictor", "code2wav") if request.audio_frames else ()
    return ("preprocessing", *pictures, "mm_aggregate", "thinker", "decode", *speech)


def outputs(request: SimulatedRequest) -> Collection[str]:
    """The stages that send a part of the answer to the collector."""
    return ("decode", "code2wav") if request.audio_frames else ("decode",)


QWEN3_OMNI = SimulationModel(
    stages={
        "preprocessing": Preprocessing,
        "image_encoder": Encoder,
        "audio_encoder": Encoder,
        "mm_aggregate": Aggregate,
        "thinker": Thinker,
        "decode": Decode,
        "talker_ar": Talker,
        "code_predictor": CodePredictor,
        "code2wav": Vocoder,
    },
    route=route,
    outputs=outputs,
    law_sets={"published": PUBLISHED},
    item_counters={"code2wav": "omni_stage_frames_total"},
    frame_seconds=FRAME_SECONDS,
)
