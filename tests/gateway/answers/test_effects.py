"""Every request field has an effect: it changes the request to the pipeline, or how the answer is sent."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from gateway.answers.chat import manner_of
from gateway.api.conversion import convert
from gateway.api.media_options import SAME_OF_CLIPS
from gateway.api.schema import (
    ChatCompletionRequest,
    ClipOptions,
    FrameSampling,
    NamedSchema,
    PictureOptions,
    StageSampling,
)
from gateway.api.voices import Voices
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import OmniError
from stages.messages import PictureSize, VideoOptions
from tests.gateway.json_bodies import parse

VOICES = Voices(("chelsie", "ethan"), "ethan")
USER = {"role": "user", "content": "Hello?"}
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("look_up", "add")]

# For each field, a value that differs from the default. Some fields have an effect only together with other fields,
# which are in `NEEDS`.
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
    "mm_processor_kwargs": {"fps": 1},
    "chat_template_kwargs": {"enable_thinking": False},
    "tools": TOOLS,
    "tool_choice": "none",
    "parallel_tool_calls": False,
    "reasoning_effort": "none",
    "separate_reasoning": False,
    "thinking_token_budget": 5,
    "thinking_budget": 5,
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
    "response_format": {"type": "json_object"},
    "structured_outputs": {"regex": "a"},
    "guided_json": {"type": "object"},
    "guided_regex": "a",
    "guided_choice": ["a"],
    "guided_grammar": 'root ::= "a"',
    "json_schema": "{}",
    "regex": "a",
    "ebnf": 'root ::= "a"',
    "structural_tag": "{}",
    "skip_special_tokens": False,
    "return_token_ids": True,
    "logprobs": True,
    "top_logprobs": 5,
    "n": 5,
    "stream": True,
    "stream_options": {"include_usage": True},
}
NEEDS = {
    "top_logprobs": {"logprobs": True},
    "stream_options": {"stream": True},
    "n": {"modalities": ["text"]},
    "tool_choice": {"tools": TOOLS},
    "parallel_tool_calls": {"tools": TOOLS},
}
# The server has one model and accepts any name in `model`.
WITHOUT = {"model"}


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


# `outcome` always sends the fields `messages` and `modalities` at the top level.
@pytest.mark.parametrize("field", sorted(VALUES.keys() - {"messages", "modalities"}))
def test_a_field_in_extra_body_has_the_effect_of_the_field(field):
    needed = NEEDS.get(field, {})
    assert outcome(extra_body={field: VALUES[field]}, **needed) == outcome(**{field: VALUES[field]}, **needed)


SCHEMA_OPTIONS = {
    "schema": {"type": "array"},
    "strict": False,
}


# The name and the description of a schema are not shown to the model.
@pytest.mark.parametrize("option", sorted({*NamedSchema.__struct_fields__} - {"name", "description"}))
def test_an_option_of_a_schema_has_an_effect(option):
    form = {"name": "answer", "schema": {"type": "object"}}
    plain = outcome(response_format={"type": "json_schema", "json_schema": form})
    changed = {**form, option: SCHEMA_OPTIONS[option]}
    assert outcome(response_format={"type": "json_schema", "json_schema": changed}) != plain


CHOICES = {
    "none": "none",
    "required": "required",
    "a tool": {"type": "function", "function": {"name": "add"}},
    "some tools": {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "add"}}]},
    },
    "one of some tools": {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "look_up"}}]},
    },
}


def test_every_choice_of_tools_has_an_effect_of_its_own():
    effects = [outcome(tools=TOOLS, tool_choice=choice)[0].tools for choice in CHOICES.values()]
    plain = outcome(tools=TOOLS)[0].tools
    assert outcome(tools=TOOLS, tool_choice="auto")[0].tools == plain
    assert all(one != other for one, other in itertools.combinations([plain, *effects], 2))


@pytest.mark.parametrize(
    ("field", "value"),
    [("description", "Adds."), ("parameters", {"type": "object"}), ("strict", True), ("name", "subtract")],
)
def test_every_field_of_a_tool_has_an_effect(field, value):
    changed = {"type": "function", "function": TOOLS[1]["function"] | {field: value}}
    assert outcome(tools=[TOOLS[0], changed])[0].tools != outcome(tools=TOOLS)[0].tools


OPTIONS = {
    "fps": 1,
    "max_frames": 5,
    "min_pixels": 100_000,
    "max_pixels": 200_000,
    "total_pixels": 300_000,
    "use_audio_in_video": True,
}


def test_no_option_is_forgotten_here():
    assert OPTIONS.keys() == {*ClipOptions.__struct_fields__}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_of_the_processor_is_that_of_the_request(option):
    request, sources, _ = outcome(mm_processor_kwargs={option: OPTIONS[option]}, images=["a"])
    same, _, _ = outcome(**{SAME_OF_CLIPS[option]: OPTIONS[option]}, images=["a"])
    assert request == same
    assert (sources[0].size is not None) == (option in PictureOptions.__struct_fields__)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", ["video", "video_url"])
def test_an_option_of_a_clip_has_an_effect_on_that_clip_alone(kind, option):
    clips = [{"type": kind, kind: "a"}, {"type": kind, kind: "b", option: OPTIONS[option]}]
    request, [first, second], _ = outcome(messages=[{"role": "user", "content": clips}])
    same, _, _ = outcome(**{SAME_OF_CLIPS[option]: OPTIONS[option]})
    assert (request.video, first.video) == (VideoOptions(), None)
    assert second.video == same.video


@pytest.mark.parametrize("kind", ["image", "image_url", "input_image"])
@pytest.mark.parametrize("option", PictureOptions.__struct_fields__)
def test_an_option_of_a_picture_has_an_effect_on_that_picture_alone(kind, option):
    field = "image" if kind == "image" else "image_url"
    pictures = [{"type": kind, field: "a"}, {"type": kind, field: "b", option: 70_000}]
    _, [first, second], _ = outcome(messages=[{"role": "user", "content": pictures}])
    assert (first.size, second.size) == (None, PictureSize(**{option: 70_000}))


def test_an_option_of_an_item_wins_over_that_of_the_request():
    parts = [{"type": "video", "video": "a", "fps": 3}, {"type": "image", "image": "b", "max_pixels": 70_000}]
    _, [clip, picture], _ = outcome(
        messages=[{"role": "user", "content": parts}], mm_processor_kwargs={"fps": 1, "max_pixels": 90_000}
    )
    assert clip.video == VideoOptions(fps=3.0, max_pixels=90_000)
    assert picture.size == PictureSize(max_pixels=70_000)


@pytest.mark.parametrize(
    ("part", "fields", "param"),
    [
        ({"type": "image", "image": "a", "min_pixels": 9, "max_pixels": 8}, {}, "messages[0].content[0].min_pixels"),
        ({"type": "video", "video": "a", "min_pixels": 9, "max_pixels": 8}, {}, "messages[0].content[0].min_pixels"),
        (
            {"type": "video_url", "video_url": "a", "min_pixels": 9},
            {"video_max_pixels": 8},
            "messages[0].content[0].min_pixels",
        ),
        (
            {"type": "image", "image": "a", "max_pixels": 8},
            {"mm_processor_kwargs": {"min_pixels": 9}},
            "messages[0].content[0].max_pixels",
        ),
    ],
)
def test_bounds_that_contradict_each_other_are_refused(part, fields, param):
    with pytest.raises(OmniError) as caught:
        outcome(messages=[{"role": "user", "content": [part]}], **fields)
    assert (caught.value.info.status, caught.value.info.param) == (400, param)


@pytest.mark.parametrize("stage", ["thinker", "talker_ar", "code_predictor"])
def test_a_top_p_of_nothing_is_greedy(stage):
    hot = {"temperature": 0.7, "top_k": 5}
    request, _, _ = outcome(stage_sampling={stage: hot | {"top_p": 0}})
    greedy, _, _ = outcome(stage_sampling={stage: hot | {"temperature": 0, "top_p": 1}})
    assert request == greedy


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
