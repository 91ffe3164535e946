"""Tests which bodies are accepted, and the status, field and code of the errors for all other bodies."""

from __future__ import annotations

import gc
import json
import tracemalloc
from contextlib import suppress

import msgspec
import pytest

from gateway.api import companions, validation
from gateway.api.unserved_fields import IGNORED, REFUSED
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import OmniError
from tests.gateway.json_bodies import parse, read

USER = {"role": "user", "content": "Hello?"}


def body(**fields) -> bytes:
    return json.dumps({"messages": [USER], **fields}).encode()


def messages(*items) -> bytes:
    return json.dumps({"messages": list(items)}).encode()


def parts(*items) -> bytes:
    return messages({"role": "user", "content": list(items)})


def image(address) -> bytes:
    return parts({"type": "image_url", "image_url": address})


def refusal(data: bytes):
    with pytest.raises(OmniError) as caught:
        parse(data)
    return caught.value.info


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nothing",
        b"[]",
        b'"messages"',
        b"null",
        b'{"messages": NaN}',
        b'{"messages": [], }',
        b'{"messages": "\xff"}',
        b'{"messages": "\\ud800"}',
        b"[" * 100_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"temperature": 1e999}',
    ],
)
def test_what_is_not_a_json_object_is_refused(data):
    info = refusal(data)
    assert (info.status, info.code, info.param) == (400, "invalid_json", None)


# Each entry: a body, the field that the error must name, and the error code.
WRONG = [
    (b"{}", "messages", "missing_required_parameter"),
    (messages(), "messages", "invalid_value"),
    (body(messages=None), "messages", "missing_required_parameter"),
    (body(messages="hi"), "messages", "invalid_value"),
    (messages("hi"), "messages[0]", "invalid_value"),
    (messages({"content": "x"}), "messages[0].role", "missing_required_parameter"),
    (messages({"role": "user"}), "messages[0].content", "missing_required_parameter"),
    (messages({"role": "robot", "content": "x"}), "messages[0].role", "invalid_value"),
    (messages({"role": 1, "content": "x"}), "messages[0].role", "invalid_value"),
    (messages(USER, {"role": "user", "content": None}), "messages[1].content", "missing_required_parameter"),
    (messages({"role": "user", "content": 3}), "messages[0].content", "invalid_value"),
    (messages(USER | {"contents": "x"}), "messages[0].contents", "unknown_parameter"),
    (messages({"role": "assistant"}), "messages[0].content", "missing_required_parameter"),
    (messages({"role": "assistant", "audio": {"data": "AAAA"}}), "messages[0].content", "missing_required_parameter"),
    (messages({"role": "assistant", "audio": {"ID": "a"}}), "messages[0].audio.ID", "unknown_parameter"),
    (
        messages({"role": "assistant", "content": "", "tool_calls": [{}]}),
        "messages[0].tool_calls[0].function",
        "missing_required_parameter",
    ),
    (
        messages({"role": "assistant", "content": "", "function_call": {"name": "f"}}),
        "messages[0].function_call",
        "unsupported_parameter",
    ),
    (parts("x"), "messages[0].content[0]", "invalid_value"),
    (parts({"text": "x"}), "messages[0].content[0].type", "missing_required_parameter"),
    (parts({"type": "smell"}), "messages[0].content[0].type", "invalid_value"),
    (parts({"type": "text"}), "messages[0].content[0].text", "missing_required_parameter"),
    (parts({"type": "text", "text": "x", "url": "y"}), "messages[0].content[0].url", "unknown_parameter"),
    (image(""), "messages[0].content[0].image_url", "invalid_value"),
    (image(["x"]), "messages[0].content[0].image_url", "invalid_value"),
    (image({}), "messages[0].content[0].image_url.url", "missing_required_parameter"),
    (image({"url": ""}), "messages[0].content[0].image_url.url", "invalid_value"),
    (
        image({"url": "x", "detail": "huge"}),
        "messages[0].content[0].image_url.detail",
        "invalid_value",
    ),
    (
        parts({"type": "input_audio", "input_audio": {"format": "wav"}}),
        "messages[0].content[0].input_audio.data",
        "missing_required_parameter",
    ),
    (parts({"type": "image", "image": ""}), "messages[0].content[0].image", "invalid_value"),
    (parts({"type": "image", "image": "x", "min_pixels": 0}), "messages[0].content[0].min_pixels", "invalid_value"),
    (parts({"type": "image", "image": "x", "fps": 1}), "messages[0].content[0].fps", "unknown_parameter"),
    (
        parts({"type": "image", "image": "x", "resized_width": 8}),
        "messages[0].content[0].resized_width",
        "unsupported_parameter",
    ),
    (parts({"type": "video", "video": "x", "fps": 0}), "messages[0].content[0].fps", "invalid_value"),
    (
        parts({"type": "video", "video": "x", "nframes": 8}),
        "messages[0].content[0].nframes",
        "unsupported_parameter",
    ),
    (
        parts({"type": "video", "video": ["x"], "sample_fps": 2}),
        "messages[0].content[0].sample_fps",
        "unsupported_parameter",
    ),
    (
        parts({"type": "audio", "audio": "x", "use_audio_in_video": True}),
        "messages[0].content[0].use_audio_in_video",
        "unknown_parameter",
    ),
    (
        parts({"type": "file", "file": {"file_id": "file-1"}}),
        "messages[0].content[0].file.file_id",
        "unsupported_parameter",
    ),
    (parts({"type": "file", "file": {}}), "messages[0].content[0].file.file_data", "missing_required_parameter"),
    (messages(USER | {"partial": True}), "messages[0].partial", "unknown_parameter"),
    (
        parts({"type": "text", "text": "x"}, {"type": "video_url", "video_url": {"url": 3}}),
        "messages[0].content[1].video_url.url",
        "invalid_value",
    ),
    (parts({"type": "audio_url"}), "messages[0].content[0].audio_url", "missing_required_parameter"),
    (body(temperature="hot"), "temperature", "invalid_value"),
    (body(temperature=-0.1), "temperature", "invalid_value"),
    (body(temperature=2.1), "temperature", "invalid_value"),
    (body(temperature=True), "temperature", "invalid_value"),
    (body(top_p=-0.1), "top_p", "invalid_value"),
    (body(top_p=1.1), "top_p", "invalid_value"),
    (body(top_k=-2), "top_k", "invalid_value"),
    (body(top_k=1.5), "top_k", "invalid_value"),
    (body(min_p=1.5), "min_p", "invalid_value"),
    (body(repetition_penalty=0.009), "repetition_penalty", "invalid_value"),
    (body(repetition_penalty=2.5), "repetition_penalty", "invalid_value"),
    (body(presence_penalty=3), "presence_penalty", "invalid_value"),
    (body(frequency_penalty=-3), "frequency_penalty", "invalid_value"),
    (body(seed=2**63), "seed", "invalid_value"),
    (body(seed="1"), "seed", "invalid_value"),
    (body(max_tokens=0), "max_tokens", "invalid_value"),
    (body(max_tokens=-1), "max_tokens", "invalid_value"),
    (body(max_tokens="16"), "max_tokens", "invalid_value"),
    (body(max_tokens=2**31), "max_tokens", "invalid_value"),
    (body(max_completion_tokens=0), "max_completion_tokens", "invalid_value"),
    (body(max_completion_tokens=3, max_tokens=4), "max_completion_tokens", "invalid_value"),
    (body(min_tokens=-1), "min_tokens", "invalid_value"),
    (body(min_tokens=5, max_tokens=4), "min_tokens", "invalid_value"),
    (body(ignore_eos="yes"), "ignore_eos", "invalid_value"),
    (body(logit_bias=[]), "logit_bias", "invalid_value"),
    (body(logit_bias={"5": 101}), "logit_bias", "invalid_value"),
    (body(logit_bias={"five": 1}), "logit_bias", "invalid_value"),
    (body(logit_bias={"-5": 1}), "logit_bias", "invalid_value"),
    (body(logit_bias={"99999999999999": 1}), "logit_bias", "invalid_value"),
    (body(stop=""), "stop", "invalid_value"),
    (body(stop=["a", ""]), "stop[1]", "invalid_value"),
    (body(stop=["a"] * 17), "stop", "invalid_value"),
    (body(stop=5), "stop", "invalid_value"),
    (body(stop_token_ids=[-1]), "stop_token_ids[0]", "invalid_value"),
    (body(logprobs=3), "logprobs", "invalid_value"),
    (body(logprobs=True, top_logprobs=21), "top_logprobs", "invalid_value"),
    (body(top_logprobs=2), "top_logprobs", "invalid_value"),
    (body(n=17), "n", "invalid_value"),
    (body(n=0), "n", "invalid_value"),
    (body(n=-1), "n", "invalid_value"),
    (body(n=1.5), "n", "invalid_value"),
    (body(n="2"), "n", "invalid_value"),
    (body(n=True), "n", "invalid_value"),
    (body(n=[2]), "n", "invalid_value"),
    (body(n=2**63), "n", "invalid_value"),
    (body(n=2, modalities=["text", "audio"]), "n", "unsupported_value"),
    (body(n=2, modalities=["audio"]), "n", "unsupported_value"),
    (body(n=2, extra_body={"n": 3}), "extra_body.n", "invalid_value"),
    (body(extra_body={"n": 17}), "extra_body.n", "invalid_value"),
    (body(stream="yes"), "stream", "invalid_value"),
    (body(stream_options={"include_usage": True}), "stream_options", "invalid_value"),
    (body(stream=True, stream_options={"usage": True}), "stream_options.usage", "unknown_parameter"),
    (body(modalities=[]), "modalities", "invalid_value"),
    (body(modalities=["audio", "text", "audio"]), "modalities", "invalid_value"),
    (body(modalities=["smell"]), "modalities[0]", "invalid_value"),
    (body(modalities=["text", "text"]), "modalities", "invalid_value"),
    (body(modalities="text"), "modalities", "invalid_value"),
    (body(audio={"voice": 3}), "audio.voice", "invalid_value"),
    (body(audio={"format": "midi"}), "audio.format", "invalid_value"),
    (body(audio={"format": "WAV"}), "audio.format", "invalid_value"),
    (body(audio={"speed": 2}), "audio.speed", "unknown_parameter"),
    (body(audio={"chunks": "file"}), "audio.chunks", "invalid_value"),
    (body(stream=True, audio={"format": "mp3", "chunks": "files"}), "audio.chunks", "unsupported_value"),
    (body(voice=3), "voice", "invalid_value"),
    (body(speaker=["ethan"]), "speaker", "invalid_value"),
    (body(stage_sampling={"code2wav": {}}), "stage_sampling.code2wav", "unknown_parameter"),
    (body(stage_sampling={"talker_ar": {"top_p": -1}}), "stage_sampling.talker_ar.top_p", "invalid_value"),
    (body(stage_sampling={"code_predictor": {"top_k": -2}}), "stage_sampling.code_predictor.top_k", "invalid_value"),
    (
        body(stage_sampling={"code_predictor": {"max_tokens": 15}}),
        "stage_sampling.code_predictor.max_tokens",
        "unknown_parameter",
    ),
    (
        body(stage_sampling={"code_predictor": {"repetition_penalty": 1}}),
        "stage_sampling.code_predictor.repetition_penalty",
        "unknown_parameter",
    ),
    (body(stage_sampling={"thinkers": {}}), "stage_sampling.thinkers", "unknown_parameter"),
    (body(stage_sampling={"thinker": {"temperature": 3}}), "stage_sampling.thinker.temperature", "invalid_value"),
    (body(stage_sampling={"thinker": {"stop": "x"}}), "stage_sampling.thinker.stop", "unknown_parameter"),
    (body(talker_temperature=2.5), "talker_temperature", "invalid_value"),
    (body(talker_top_p=-1), "talker_top_p", "invalid_value"),
    (body(talker_top_k=-2), "talker_top_k", "invalid_value"),
    (body(talker_repetition_penalty=0), "talker_repetition_penalty", "invalid_value"),
    (body(talker_max_new_tokens=0), "talker_max_new_tokens", "invalid_value"),
    (body(talker_min_p=0.1), "talker_min_p", "unknown_parameter"),
    (body(images="tests/data/cars.jpg"), "images", "invalid_value"),
    (body(images=[""]), "images[0]", "invalid_value"),
    (body(audios=[{"url": "x"}]), "audios[0]", "invalid_value"),
    (body(videos=[None]), "videos[0]", "invalid_value"),
    (body(video_fps=0), "video_fps", "invalid_value"),
    (body(video_fps=5e-324), "video_fps", "invalid_value"),
    (body(video_max_frames=0), "video_max_frames", "invalid_value"),
    (body(video_min_pixels=200, video_max_pixels=100), "video_min_pixels", "invalid_value"),
    (body(use_audio_in_video=1), "use_audio_in_video", "invalid_value"),
    (body(functions=[{}]), "functions", "unsupported_parameter"),
    (body(response_format="json"), "response_format", "invalid_value"),
    (body(response_format={}), "response_format.type", "missing_required_parameter"),
    (body(response_format={"type": "xml"}), "response_format.type", "invalid_value"),
    (body(response_format={"type": "json_object", "schema": {}}), "response_format.schema", "unknown_parameter"),
    (body(response_format={"type": "json_schema"}), "response_format.json_schema", "missing_required_parameter"),
    (
        body(response_format={"type": "json_schema", "json_schema": {"schema": "{}"}}),
        "response_format.json_schema.schema",
        "invalid_value",
    ),
    (
        body(response_format={"type": "json_schema", "json_schema": {"strict": 1}}),
        "response_format.json_schema.strict",
        "invalid_value",
    ),
    (
        body(response_format={"type": "json_schema", "json_schema": {"shema": {}}}),
        "response_format.json_schema.shema",
        "unknown_parameter",
    ),
    (body(structured_outputs=[]), "structured_outputs", "invalid_value"),
    (body(structured_outputs={"json": 1}), "structured_outputs.json", "invalid_value"),
    (body(structured_outputs={"xml": "a"}), "structured_outputs.xml", "unknown_parameter"),
    (body(structured_outputs={"choice": []}), "structured_outputs.choice", "invalid_value"),
    (body(structured_outputs={"regex": "a", "json_object": True}), "structured_outputs.regex", "invalid_value"),
    (body(guided_json=True), "guided_json", "invalid_value"),
    (body(guided_choice="yes"), "guided_choice", "invalid_value"),
    (body(guided_choice=[1]), "guided_choice[0]", "invalid_value"),
    (body(guided_regex=""), "guided_regex", "invalid_value"),
    (body(guided_grammar={}), "guided_grammar", "invalid_value"),
    (body(regex=["a"]), "regex", "invalid_value"),
    (body(ebnf=""), "ebnf", "invalid_value"),
    (body(json_schema={"type": "object"}), "json_schema", "invalid_value"),
    (body(structural_tag={}), "structural_tag", "invalid_value"),
    (body(regex="a", guided_regex="b"), "regex", "invalid_value"),
    (body(web_search_options={}), "web_search_options", "unsupported_parameter"),
    (body(request_id="mine"), "request_id", "unsupported_parameter"),
    (body(sampling_params_list=[{"temperature": 0}]), "sampling_params_list", "unsupported_parameter"),
    (body(media_io_kwargs={"video": {"fps": 1}}), "media_io_kwargs", "unsupported_parameter"),
    (body(stage_params={"thinker": {"top_k": 1}}), "stage_params", "unsupported_parameter"),
    (body(best_of=2), "best_of", "unknown_parameter"),
    (body(max_tokens=16.5), "max_tokens", "invalid_value"),
    (body(mm_processor_kwargs=[]), "mm_processor_kwargs", "invalid_value"),
    (body(mm_processor_kwargs={"fps": 0}), "mm_processor_kwargs.fps", "invalid_value"),
    (body(mm_processor_kwargs={"num_frames": 4}), "mm_processor_kwargs.num_frames", "unsupported_parameter"),
    (body(mm_processor_kwargs={"truncation": True}), "mm_processor_kwargs.truncation", "unknown_parameter"),
    (body(mm_processor_kwargs={"fps": 1}, video_fps=2), "mm_processor_kwargs.fps", "invalid_value"),
    (
        body(mm_processor_kwargs={"use_audio_in_video": False}, use_audio_in_video=True),
        "mm_processor_kwargs.use_audio_in_video",
        "invalid_value",
    ),
    (
        body(mm_processor_kwargs={"min_pixels": 200}, video_max_pixels=100),
        "mm_processor_kwargs.min_pixels",
        "invalid_value",
    ),
    (body(chat_template_kwargs={"thinking": True}), "chat_template_kwargs.thinking", "unknown_parameter"),
    (body(chat_template_kwargs={"enable_thinking": "no"}), "chat_template_kwargs.enable_thinking", "invalid_value"),
    (body(reasoning_effort="extreme"), "reasoning_effort", "invalid_value"),
    (body(reasoning_effort=1), "reasoning_effort", "invalid_value"),
    (body(separate_reasoning="yes"), "separate_reasoning", "invalid_value"),
    (body(thinking_token_budget=-1), "thinking_token_budget", "invalid_value"),
    (body(thinking_token_budget=1.5), "thinking_token_budget", "invalid_value"),
    (body(thinking_budget=2**31), "thinking_budget", "invalid_value"),
    (body(thinking_budget=1, thinking_token_budget=2), "thinking_budget", "invalid_value"),
    (
        messages(USER, {"role": "assistant", "reasoning_content": ["a"], "content": "b"}),
        "messages[1].reasoning_content",
        "invalid_value",
    ),
    (messages(USER | {"reasoning_content": "a"}), "messages[0].reasoning_content", "unknown_parameter"),
    (
        body(chat_template_kwargs={"add_generation_prompt": False}),
        "chat_template_kwargs.add_generation_prompt",
        "unsupported_parameter",
    ),
    (
        body(chat_template_kwargs={"continue_final_message": True}),
        "chat_template_kwargs.continue_final_message",
        "unsupported_parameter",
    ),
    (body(extra_body=3), "extra_body", "invalid_value"),
    (body(extra_body={"temprature": 1}), "extra_body.temprature", "unknown_parameter"),
    (body(extra_body={"extra_body": {"top_k": 1}}), "extra_body.extra_body", "unknown_parameter"),
    (body(extra_body={"top_k": -2}), "extra_body.top_k", "invalid_value"),
    (body(extra_body={"images": ["x", 3]}), "extra_body.images[1]", "invalid_value"),
    (body(extra_body={"tools": [{}]}), "extra_body.tools[0].function", "missing_required_parameter"),
    (body(extra_body={"top_k": 1}, top_k=2), "extra_body.top_k", "invalid_value"),
    (body(extra_body={"images": ["x"]}, images=["y"]), "extra_body.images", "invalid_value"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "param", "code"), WRONG)
def test_a_wrong_field_is_named(data, param, code):
    info = refusal(data)
    assert (info.status, info.param, info.code) == (400, param, code)
    assert info.type == "invalid_request_error"
    assert f"'{param}'" in info.message


@pytest.mark.parametrize(
    ("data", "meant"),
    [
        (body(temprature=1), "temperature"),
        (body(max_token=1), "max_tokens"),
        (body(image=["x"]), "images"),
        (image({"url": "x", "detial": "low"}), "detail"),
        (body(stream=True, stream_options={"include_use": True}), "include_usage"),
        (body(stage_sampling={"thinker": {"topk": 5}}), "top_k"),
        (body(stage_sampling={"code_predictor": {"topk": 5}}), "top_k"),
        (body(stage_sampling={"talker": {}}), "talker_ar"),
        (body(stage_sampling={"predictor": {}}), "code_predictor"),
        (body(audio={"voices": "ethan"}), "voice"),
        (body(talker_max_tokens=5), "talker_max_new_tokens"),
    ],
)
def test_a_misspelt_field_gets_a_suggestion(data, meant):
    assert f"did you mean '{meant}'?" in refusal(data).message


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (parts({"type": "image", "image": "x", "fps": 1}), "messages[0].content[0].fps"),
        (messages(USER | {"tool_call_id": "x"}), "messages[0].tool_call_id"),
        (body(audio={"id": "x"}), "audio.id"),
    ],
)
def test_a_field_of_another_type_is_not_suggested_again(data, path):
    hint = "this field is allowed only in other types of messages, parts or objects"
    assert refusal(data).message == f"Unknown field '{path}'; {hint}."


@pytest.mark.parametrize(
    ("data", "known"),
    [
        (body(modalities=["smell"]), "text, audio"),
        (body(audio={"format": "midi"}), "wav, pcm16, pcm, flac, mp3, opus, aac"),
        (body(audio={"chunks": "file"}), "files, one_file"),
        (messages({"role": "robot", "content": "x"}), "system, developer, user, assistant, tool"),
        (
            parts({"type": "smell"}),
            "text, image_url, input_audio, audio_url, video_url, image, audio, video, file, "
            "input_text, input_image, refusal",
        ),
    ],
)
def test_a_value_that_is_none_of_the_known_ones_gets_their_list(data, known):
    assert refusal(data).message.endswith(f"; known: {known}.")


def test_a_huge_wrong_value_is_not_repeated_in_full():
    info = refusal(messages({"role": "x" * 1_000_000, "content": ""}))
    assert len(info.message) < 500


def test_a_huge_unknown_field_is_not_repeated_in_full():
    info = refusal(body(**{"x" * 1_000_000: 1}))
    assert len(info.message) < 500
    assert len(info.param) < 500


@pytest.mark.parametrize("field", sorted(IGNORED))
def test_openai_fields_that_change_no_answer_are_ignored(field):
    assert parse(body(**{field: {"any": "value"}})).messages[0].content == "Hello?"


@pytest.mark.parametrize("field", sorted(REFUSED))
def test_refused_fields_may_be_null(field):
    parse(body(**{field: None}))


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"function_call": "auto"},
        {"sampling_params_list": []},
        {"media_io_kwargs": {}},
        {"stage_params": {}},
    ],
)
def test_refused_fields_may_ask_for_nothing(fields):
    parse(body(**fields))


FUNCTION = {"function": {"name": "f"}}
GOOD = [
    {
        "tools": [FUNCTION],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [FUNCTION]}},
    },
    {"model": "anything"},
    {"modalities": ["text"]},
    {"modalities": ["text", "audio"]},
    {"modalities": ["audio", "text"]},
    {"modalities": ["audio"]},
    {"modalities": ["text"], "audio": {"voice": "default", "format": "wav"}},
    *(
        {"stream": stream, "audio": {"format": audio_format, "chunks": chunks}}
        for stream, audio_format, chunks in [
            (True, "wav", "files"),
            (True, None, "files"),
            (False, "mp3", "files"),
            (True, "wav", "one_file"),
            (True, "mp3", "one_file"),
            (True, "pcm", None),
        ]
    ),
    {"stage_sampling": {"talker_ar": {"top_k": 5}, "code_predictor": {"temperature": 0}}},
    {"max_tokens": 5, "max_completion_tokens": 5},
    {"n": 1},
    {"n": 16},
    {"n": 2.0},
    {"n": 1, "modalities": ["text", "audio"]},
    {"response_format": {"type": "text"}},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": None}}}},
    {"response_format": {"type": "structural_tag", "structures": [{"schema": None}], "triggers": ["<"]}},
    {"structured_outputs": {"choice": ["yes", "no"]}},
    {"guided_json": {"type": "object"}},
    {"guided_json": "{}"},
    {"guided_regex": "a|b"},
    {"ebnf": 'root ::= "a"'},
    {"top_k": -1},
    {"seed": -(2**63)},
    {"stop": ["a", "b"]},
    {"logit_bias": {"50256": -100}},
    {"logprobs": True, "top_logprobs": 20},
    {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
    {"temperature": None, "images": None, "stage_sampling": None, "stop": None, "stream": None},
    {"stage_sampling": {"thinker": {"temperature": 0.8, "seed": None}}},
    {"temperature": 2, "top_p": 0, "talker_top_p": 0},
    {"max_tokens": 16.0, "top_k": -1.0, "stop_token_ids": [5.0], "logit_bias": {"5": 1.0}},
    {"logprobs": False, "top_logprobs": 0},
    {"top_logprobs": 0},
    {"stream": True, "stream_options": {"include_usage": None, "include_obfuscation": None, "other": None}},
    {"unknown": None, "audio": {"unknown": None}, "stage_sampling": {"thinker": {"unknown": None}}},
    {"mm_processor_kwargs": {"use_audio_in_video": True, "fps": 1, "max_pixels": 100_000}, "use_audio_in_video": True},
    {"chat_template_kwargs": {"enable_thinking": False, "add_generation_prompt": True}},
    {"chat_template_kwargs": {"enable_thinking": True, "continue_final_message": False}},
    {"reasoning_effort": "high", "separate_reasoning": True, "thinking_token_budget": 0, "thinking_budget": 0},
    {"messages": [{"role": "assistant", "reasoning": "a", "reasoning_content": "a"}, {"role": "user", "content": "b"}]},
    {"extra_body": {"top_k": 5, "video_fps": 1.0}, "top_k": 5, "video_fps": 1},
    {"extra_body": {"top_k": None, "user": 1}, "top_k": 5, "user": 2},
    {"extra_body": None},
    {"messages": [
        {"role": "system", "content": "x", "name": None, "id": "m1", "cache_control": {"type": "ephemeral"}},
        {"role": "user", "unknown": None, "content": [
            {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}, "unknown": None},
            {"type": "input_text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit"}},
            {"type": "image_url", "image_url": "x", "max_pixels": 100_000, "uuid": "u"},
            {"type": "image_url", "image_url": {"url": "x", "detail": None, "format": "image/png"}},
            {"type": "image_url", "image_url": {"url": "x", "detail": "original"}},
            {"type": "input_image", "image_url": "x", "detail": "auto", "file_id": None},
            {"type": "image", "image": "x", "min_pixels": 1, "max_pixels": 1},
            {"type": "audio", "audio": "x"},
            {"type": "audio_url", "audio_url": "x"},
            {"type": "input_audio", "input_audio": {"data": "x"}},
            {"type": "input_audio", "input_audio": {"data": "x", "format": "audio/X-WAV"}},
            {"type": "video", "video": "x", "fps": 1, "max_frames": 4, "total_pixels": 9, "use_audio_in_video": True},
            {"type": "video_url", "video_url": "x", "min_pixels": 5},
            {"type": "file", "file": {"file_data": "x", "filename": "a.wav", "file_id": None}},
        ]},
        {"role": "assistant", "content": "x", "reasoning": "y", "reasoning_content": "y", "thinking_blocks": [{}],
         "annotations": [{}], "index": 0, "content-type": "text", "provider_specific_fields": {}, "unknown": None},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "x"}, {"type": "text", "text": "x"}]},
    ]},
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(companions.OF_MESSAGES))
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_companions_of_messages_are_taken_with_any_value(role, name):
    plain = {"role": role, "content": "x"}
    assert parse(messages(plain | {name: {"any": [1]}})) == parse(messages(plain))


@pytest.mark.parametrize("name", sorted(companions.OF_PARTS))
@pytest.mark.parametrize("part", [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "x"}}])
def test_companions_of_parts_are_taken_with_any_value(part, name):
    assert parse(parts(part | {name: {"any": [1]}})) == parse(parts(part))


@pytest.mark.parametrize("name", sorted(companions.OF_CALLS | companions.OF_FUNCTIONS_OF_CALLS))
def test_companions_of_calls_are_taken_with_any_value(name):
    def call(beside=None, inside=None):
        function = {"name": "f", "arguments": "{}", **(inside or {})}
        return messages(USER, {"role": "assistant", "tool_calls": [{"function": function, **(beside or {})}]})

    sent = {name: {"any": [1]}}
    more = call(inside=sent) if name in companions.OF_FUNCTIONS_OF_CALLS else call(beside=sent)
    assert parse(more) == parse(call())


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (b'{"model": "ab\\ud83d"}', "half of a surrogate pair: \\ud83d without the other half (byte 13)"),
        (b'{"model": "\\udc00 x"}', "half of a surrogate pair: \\udc00 without the other half (byte 11)"),
        (b'{"model": "\\\\ud800 \\ud83d\\ude00 \\ud83d\\n"}', "\\ud83d without the other half (byte 32)"),
        (b'{"model": "\\ud83d', "half of a surrogate pair: \\ud83d without the other half (byte 11)"),
        (b'{"model": "\\ud83d\\ude00', "not valid JSON: Input data was truncated"),
        (b'{"model": "\\\\ud800", "n"', "not valid JSON: Input data was truncated"),
        (b'{"model": "abc\xed\xa0\x80"}', "not UTF-8 (byte 14)"),
    ],
)
def test_half_a_character_is_named_where_it_is(data, wrong):
    assert wrong in refusal(data).message


def test_half_a_character_after_long_strings_is_named_where_it_is():
    data = body(prediction="x" * 20_000, model="MODEL").replace(b"MODEL", b"\\ud83d")
    assert f"(byte {data.index(b'ud83d') - 1})" in refusal(data).message


@pytest.mark.parametrize("piece", [1, 2, 1 << 15])
def test_a_byte_order_mark_is_taken(piece):
    data = b"\xef\xbb\xbf" + body(images=[DATA_URL], temperature=0.5)
    request = validation.parse(read(data, pieces=piece), Limits())
    assert request.temperature == 0.5
    info = refusal(b"\xef\xbb\xbf" + b'{"model": }')
    assert "(byte 13)" in info.message
    assert refusal(b" \xef\xbb\xbf{}").code == "invalid_json"


def test_whole_numbers_are_integers():
    request = parse(body(max_tokens=16.0, top_k=5.0, seed=1e3, temperature=1.0, logit_bias={"5": 1.0}))
    assert (request.max_tokens, request.top_k, request.seed, request.temperature) == (16, 5, 1000, 1.0)
    assert all(type(value) is int for value in (request.max_tokens, request.top_k, request.seed))


def test_fields_of_extra_body_are_fields_of_the_request():
    assert parse(body(extra_body={"top_k": 5, "images": [DATA_URL[:100]]})) == parse(
        body(top_k=5, images=[DATA_URL[:100]])
    )
    assert parse(json.dumps({"extra_body": {"messages": [USER]}}).encode()) == parse(body())


def test_long_strings_in_extra_body_agree_if_their_content_does():
    other = DATA_URL[:-4] + "BBBB"
    assert parse(body(extra_body={"images": [DATA_URL]}, images=[DATA_URL])).images
    assert refusal(body(extra_body={"images": [other]}, images=[DATA_URL])).param == "extra_body.images"


@pytest.mark.parametrize("fields", GOOD)
def test_good_fields_are_taken(fields):
    parse(body(**fields))


def test_an_answer_is_taken_back_as_the_client_library_gives_it():
    answer = {"role": "assistant", "content": "Hi.", "refusal": None, "annotations": [], "audio": None}
    parse(messages(USER, answer | {"function_call": None, "tool_calls": None}, USER))


@pytest.mark.parametrize(
    ("answer", "ok"),
    [
        ({"content": "Hi.", "audio": {"id": "audio_1"}}, True),
        ({"content": None, "audio": {"id": "audio_1", "data": "", "expires_at": 1, "transcript": "Hi."}}, True),
        ({"content": None, "refusal": "No.", "audio": {"id": "audio_1"}}, True),
        ({"content": None, "audio": {"id": "audio_1"}}, True),
        ({"audio": {"id": "audio_1", "finish_reason": "stop"}}, True),
        ({"audio": {"data": "AAAA"}}, False),
        ({"content": None, "audio": {}}, False),
    ],
)
def test_an_earlier_spoken_answer_needs_its_text_or_its_id(answer, ok):
    data = messages(USER, {"role": "assistant"} | answer, USER)
    if ok:
        parse(data)
    else:
        assert "needs its 'audio.id', or its text" in refusal(data).message


LONG = 'ab é "\\ \n' * 4000
DATA_URL = "data:image/png;base64," + "AAAA" * 10_000


def test_long_text_is_text_wherever_it_may_be():
    request = parse(
        messages(
            {"role": "system", "content": LONG + "1", "name": LONG},
            {"role": "user", "content": [{"type": "text", "text": LONG + "2"}]},
            {
                "role": "assistant",
                "content": None,
                "audio": {"id": "x", "transcript": LONG + "3", "data": "A" * 50_000},
            },
        )
    )
    system, user, assistant = request.messages
    assert (system.content, user.content[0].text) == (LONG + "1", LONG + "2")
    assert assistant.audio.transcript == LONG + "3"


def test_long_media_are_kept_apart_and_other_long_addresses_are_not():
    address = "https://example.org/" + "x" * 50_000
    body = read(
        json.dumps(
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": DATA_URL}},
                            {"type": "input_audio", "input_audio": {"data": "AAAA" * 9000, "format": "wav"}},
                            {"type": "video_url", "video_url": {"url": address}},
                            {"type": "video", "video": [DATA_URL, address, "f.png"]},
                        ],
                    }
                ],
                "images": [DATA_URL, address],
                "prediction": LONG,
            }
        ).encode()
    )
    request = validation.parse(body, Limits())
    image, sound, video, clip = request.messages[0].content
    assert bytes(body.strings[image.image_url.url].content) == DATA_URL.encode()
    assert bytes(body.strings[sound.input_audio.data].content) == b"AAAA" * 9000
    assert bytes(body.strings[request.images[0]].content) == DATA_URL.encode()
    assert video.video_url.url == request.images[1] == address
    assert bytes(body.strings[clip.video[0]].content) == DATA_URL.encode()
    assert clip.video[1:] == [address, "f.png"]


@pytest.mark.parametrize(
    ("data", "param"),
    [
        (body(stop="x" * 20_000), "stop"),
        (body(stop=["x" * 20_000]), "stop[0]"),
        (body(logit_bias={"9" * 20_000: 1}), "logit_bias"),
        (body(modalities=["x" * 20_000]), "modalities[0]"),
        (body(temperature="x" * 20_000), "temperature"),
        (messages({"role": "user", "content": {LONG: 1}}), "messages[0].content"),
    ],
)
def test_a_long_string_in_a_wrong_place_names_the_field(data, param):
    info = refusal(data)
    assert (info.status, info.code, info.param) == (400, "invalid_value", param)
    assert len(info.message) < 500


@pytest.mark.parametrize(
    "data",
    [
        messages({"role": "user", "content": "x" * 20_000 + "\\"}).replace(b"\\\\", b"\\q"),
        body(prediction=LONG) + b"}",
        body(prediction=LONG, images=[DATA_URL, 12345, DATA_URL]).replace(b"12345", b","),
    ],
)
def test_the_position_of_an_error_is_that_in_the_body(data):
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.json.decode(data)
    assert str(caught.value) in refusal(data).message


def test_too_much_long_text_names_the_field():
    data = messages({"role": "user", "content": [{"type": "text", "text": "x" * 100_000}]})
    with pytest.raises(OmniError) as caught:
        parse(data, Limits(text_bytes=90_000))
    info = caught.value.info
    assert (info.status, info.code, info.param) == (413, "text_too_large", "messages[0].content[0].text")
    parse(data, Limits(text_bytes=110_000))
    parse(body(images=[DATA_URL], prediction="x" * 100_000), Limits(text_bytes=1000))


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


SIZE = 2 << 20
# Bodies of up to 2 MiB. There is one body for each kind of content that needs much more memory as Python objects than
# as bytes, or that the server does not read.
HEAVY = {
    "lists": b'{"messages": [' + b"[]," * (SIZE // 3) + b"[]]}",
    "objects": b'{"messages": [' + b"{}," * (SIZE // 3) + b"{}]}",
    "nest": b'{"metadata": ' + nested(SIZE // 2) + b"}",
    "nests": b'{"metadata": [' + b",".join([nested(60)] * (SIZE // 121)) + b"]}",
    "ignored list": body()[:-1] + b', "metadata": [' + b"0," * (SIZE // 2) + b"0]}",
    "ignored strings": body()[:-1] + b', "metadata": [' + b'"a",' * (SIZE // 4) + b"0]}",
    "ignored string": body(prediction="x" * SIZE),
    "earlier speech": messages(USER, {"role": "assistant", "content": "", "audio": {"data": "A" * SIZE}}, USER),
    "annotations": messages(USER, {"role": "assistant", "content": "", "annotations": [{}] * 2000}, USER),
    "media": body(images=["data:;base64," + "A" * SIZE]),
    "parts": parts(*[{"type": "text", "text": ""}] * (SIZE // 30)),
    "stop": body(stop=["x"] * (SIZE // 5)),
    "stop ids": body(stop_token_ids=[1] * (SIZE // 3)),
    "biases": body(logit_bias={str(index): 1 for index in range(SIZE // 12)}),
    "unknown": body(**{str(index): 1 for index in range(SIZE // 12)}),
    "number": body(seed=0).replace(b"0}", b"1" * SIZE + b"}"),
    "fraction": body(temperature=0.5).replace(b"0.5}", b"0." + b"1" * SIZE + b"}"),
    "spaces": body() + b" " * SIZE,
    "good messages": messages(*[USER] * 1600),
    "good parts": parts(*[{"type": "image_url", "image_url": {"url": "x"}}] * 1200),
    "good biases": body(logit_bias={str(index): 1.0 for index in range(4900)}),
    "companions": messages(USER | {"annotations": [[]] * 2400}),
}


@pytest.mark.parametrize("name", HEAVY)
def test_a_body_takes_a_small_multiple_of_its_own_bytes(name):
    data = HEAVY[name]
    limits = Limits(body_values=5000)
    gc.collect()
    tracemalloc.start()
    try:
        request = None
        with suppress(OmniError):
            request = parse(data, limits)
        peak = tracemalloc.get_traced_memory()[1]
        del request
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(data) + 400 * limits.body_values


@pytest.mark.parametrize("name", ["ignored string", "earlier speech", "media"])
def test_a_string_that_is_not_read_here_does_not_reach_the_decoder(name):
    body = read(HEAVY[name])
    validation.parse(body, Limits())
    assert len(body.outline) < 1000
