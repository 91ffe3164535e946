"""Every request field has an effect: it changes the request to the pipeline, or how the answer is sent."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from gateway.answers.chat import manner_of
from gateway.api.conversion import convert
from gateway.api.schema import ChatCompletionRequest, FrameSampling, StageSampling
from gateway.api.voices import Voices
from omni_pipeline.config.schema import Limits
from tests.gateway.json_bodies import parse

VOICES = Voices(("chelsie", "ethan"), "ethan")
USER = {"role": "user", "content": "Hello?"}

# For each field, a value that differs from its default, with the other fields that it needs to have an effect.
VALUES: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Goodbye."}],
    "modalities": ["text"],
    "audio": {"format": "flac"},
    "voice": "chelsie",
    "speaker": "chelsie",
    "images": ["a.png"],
    "audios": ["a.wav"],
    "videos": ["a.mp4"],
    "video_fps": 1,
    "video_max_frames": 5,
    "video_min_pixels": 100_000,
    "video_max_pixels": 200_000,
    "video_total_pixels": 300_000,
    "use_audio_in_video": True,
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "min_tokens": 5,
    "ignore_eos": True,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.5,
    "repetition_penalty": 1.5,
    "presence_penalty": 1,
    "frequency_penalty": 1,
    "logit_bias": {"5": 1},
    "seed": 5,
    "stage_sampling": {"thinker": {"top_k": 5}},
    "talker_temperature": 0.5,
    "talker_top_p": 0.5,
    "talker_top_k": 5,
    "talker_repetition_penalty": 1.5,
    "talker_max_new_tokens": 5,
    "stop": "x",
    "stop_token_ids": [5],
    "skip_special_tokens": False,
    "return_token_ids": True,
    "logprobs": True,
    "top_logprobs": 5,
    "stream": True,
    "stream_options": {"include_usage": True},
}
NEEDS = {"top_logprobs": {"logprobs": True}, "stream_options": {"stream": True}}
# The server has one model and accepts any name in `model`. It refuses any `n` except 1.
WITHOUT = {"model", "n"}


def outcome(**fields: Any) -> tuple[Any, ...]:
    """All effects of a request on the server."""
    request = parse(json.dumps({"messages": [USER], "modalities": ["text", "audio"], **fields}).encode())
    return *convert(request, VOICES, Limits()), manner_of(request)


def test_no_field_is_forgotten_here():
    assert VALUES.keys() | WITHOUT == {*ChatCompletionRequest.__struct_fields__}


@pytest.mark.parametrize("field", VALUES)
def test_a_field_has_an_effect(field):
    needed = NEEDS.get(field, {})
    assert outcome(**{field: VALUES[field]}, **needed) != outcome(**needed)


@pytest.mark.parametrize(
    ("stage", "field"),
    [
        *itertools.product(("thinker", "talker_ar"), StageSampling.__struct_fields__),
        *itertools.product(("code_predictor",), FrameSampling.__struct_fields__),
    ],
)
def test_a_field_has_an_effect_on_one_stage_alone(stage, field):
    plain, _, _ = outcome()
    changed, _, _ = outcome(stage_sampling={stage: {field: VALUES[field]}})
    parts = {
        "thinker": (plain.thinker, changed.thinker),
        "talker_ar": (plain.speech.talker, changed.speech.talker),
        "code_predictor": (plain.speech.predictor, changed.speech.predictor),
    }
    assert [name for name, (before, after) in parts.items() if before != after] == [stage]
