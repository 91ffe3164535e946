"""Tests the conversion of a request for the pipeline: roles, positions of media, defaults and precedence."""

from __future__ import annotations

import json

import pytest

from gateway.api.conversion import MediaSource, convert
from gateway.api.voices import Voices
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import OmniError
from stages.messages import MediaRef, Sampling, SpeechOptions, Text, TextOutput, VideoOptions
from tests.gateway.json_bodies import parse

USER = {"role": "user", "content": "What is it?"}


VOICES = Voices(("chelsie", "ethan"), default="ethan")


def converted(*messages, **fields):
    return convert(parse(json.dumps({"messages": messages or [USER], **fields}).encode()), VOICES, Limits())


def test_a_plain_request_has_the_defaults_of_the_reference():
    request, sources = converted()
    assert sources == []
    assert (request.thinker, request.text, request.video) == (Sampling(), TextOutput(stream=False), VideoOptions())
    assert request.thinker.temperature == 0


@pytest.mark.parametrize(
    ("role", "turn"),
    [("system", "system"), ("developer", "system"), ("user", "user"), ("assistant", "assistant"), ("tool", "tool")],
)
def test_roles(role, turn):
    request, _ = converted({"role": role, "content": "x"}, USER)
    assert [turn.role for turn in request.turns] == [turn, "user"]


def test_an_earlier_refusal_stands_for_its_content():
    request, _ = converted(USER, {"role": "assistant", "content": None, "refusal": "No."}, USER)
    assert request.turns[1].content == [Text("No.")]


@pytest.mark.parametrize(("content", "text"), [(None, "Said."), ("Written.", "Written."), ("", "Said."), ([], "Said.")])
def test_an_earlier_spoken_answer_is_taken_by_its_content_or_if_that_is_empty_its_transcript(content, text):
    answer = {"role": "assistant", "content": content, "audio": {"id": "audio_1", "transcript": "Said."}}
    request, _ = converted(USER, answer, USER)
    assert request.turns[1].content == [Text(text)]


def test_content_parts_stand_where_they_are():
    request, sources = converted(
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image_url", "image_url": {"url": "i.png"}},
                {"type": "text", "text": "b"},
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            ],
        },
        {"role": "assistant", "content": "c"},
        {
            "role": "user",
            "content": [
                {"type": "video_url", "video_url": {"url": "v.mp4"}},
                {"type": "audio_url", "audio_url": {"url": "a.wav"}},
                {"type": "video", "video": ["0.png", "1.png"], "fps": 3},
            ],
        },
    )
    assert [turn.content for turn in request.turns] == [
        [Text("a"), MediaRef(0), Text("b"), MediaRef(1)],
        [Text("c")],
        [MediaRef(2), MediaRef(3), MediaRef(4)],
    ]
    assert sources == [
        MediaSource("image", "i.png", "messages[0].content[1].image_url.url"),
        MediaSource("audio", "AAAA", "messages[0].content[3].input_audio.data", form="base64"),
        MediaSource("video", "v.mp4", "messages[2].content[0].video_url.url"),
        MediaSource("audio", "a.wav", "messages[2].content[1].audio_url.url"),
        MediaSource(
            "video",
            "",
            "messages[2].content[2].video",
            frames=tuple(
                MediaSource("image", f"{index}.png", f"messages[2].content[2].video[{index}]") for index in range(2)
            ),
            video=VideoOptions(fps=3.0),
        ),
    ]


def test_top_level_media_stand_before_the_last_user_text():
    request, sources = converted(
        USER,
        {"role": "assistant", "content": "A car."},
        USER,
        {"role": "assistant", "content": "It"},
        images=["i0", "i1"],
        audios=["a0"],
        videos=["v0"],
    )
    assert request.turns[0].content == [Text("What is it?")]
    assert request.turns[2].content == [*map(MediaRef, range(4)), Text("What is it?")]
    assert [source.param for source in sources] == ["images[0]", "images[1]", "videos[0]", "audios[0]"]
    assert [source.kind for source in sources] == ["image", "image", "video", "audio"]


def test_top_level_media_and_parts_are_numbered_in_prompt_order():
    part = {"type": "image_url", "image_url": {"url": "part"}}
    request, sources = converted(
        {"role": "user", "content": [part]}, {"role": "user", "content": [part]}, images=["listed"]
    )
    assert [source.value for source in sources] == ["part", "listed", "part"]
    assert request.turns[1].content == [MediaRef(1), MediaRef(2)]


def test_top_level_media_need_a_user_message():
    with pytest.raises(OmniError) as caught:
        converted({"role": "system", "content": "x"}, audios=["a"])
    assert (caught.value.info.status, caught.value.info.param) == (400, "audios")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 5}, Sampling(max_tokens=5)),
        ({"max_completion_tokens": 6}, Sampling(max_tokens=6)),
        ({"temperature": 0.7}, Sampling(temperature=0.7)),
        ({"top_k": -1}, Sampling(top_k=0)),
        ({"seed": -1}, Sampling(seed=2**63 - 1)),
        ({"logit_bias": {"7": -100}}, Sampling(logit_bias={7: -100.0})),
        (
            {"temperature": 1, "top_p": 0.5, "stage_sampling": {"thinker": {"temperature": 0, "max_tokens": 9}}},
            Sampling(temperature=0.0, top_p=0.5, max_tokens=9),
        ),
        ({"min_tokens": 2, "ignore_eos": True, "stop_token_ids": [1]},
         Sampling(min_tokens=2, ignore_eos=True, stop_token_ids=[1])),
        ({"presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.5, "min_p": 0.25},
         Sampling(presence_penalty=1.0, frequency_penalty=-1.0, repetition_penalty=1.5, min_p=0.25)),
    ],
)  # fmt: skip
def test_sampling(fields, expected):
    assert converted(**fields)[0].thinker == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"stop": "x"}, TextOutput(stop=["x"], stream=False)),
        ({"stop": ["x", "y"]}, TextOutput(stop=["x", "y"], stream=False)),
        ({"logprobs": True, "top_logprobs": 3}, TextOutput(logprobs=True, top_logprobs=3, stream=False)),
        ({"skip_special_tokens": False}, TextOutput(skip_special_tokens=False, stream=False)),
        ({"stream": True}, TextOutput()),
    ],
)
def test_text_output(fields, expected):
    assert converted(**fields)[0].text == expected


def test_video_options():
    fields = {"fps": 1.5, "max_frames": 9, "min_pixels": 100, "max_pixels": 200, "total_pixels": 300}
    request, _ = converted(**{f"video_{name}": value for name, value in fields.items()}, use_audio_in_video=True)
    assert request.video == VideoOptions(**fields, use_audio=True)


SPOKEN = {"modalities": ["text", "audio"]}


@pytest.mark.parametrize("modalities", [None, ["text"]])
def test_an_answer_is_written_unless_speech_is_asked_for(modalities):
    request, _ = converted(modalities=modalities, voice="nobody", talker_top_k=3)
    assert request.speech is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("modalities", [["text", "audio"], ["audio", "text"], ["audio"]])
def test_a_spoken_answer_has_the_defaults_of_the_reference(modalities, stream):
    request, _ = converted(modalities=modalities, stream=stream, **({"audio": {"format": "pcm16"}} if stream else {}))
    assert request.thinker == Sampling()
    assert request.speech == SpeechOptions(
        speaker="ethan",
        talker=Sampling(temperature=0.9, top_k=50, top_p=1.0, repetition_penalty=1.05),
        predictor=Sampling(temperature=1.0, top_k=50, top_p=0.8),
        streamed=stream,
    )


def test_speech_of_a_server_that_only_writes_is_refused():
    with pytest.raises(OmniError) as caught:
        convert(parse(json.dumps({"messages": [USER]} | SPOKEN).encode()), None, Limits())
    assert (caught.value.info.status, caught.value.info.param) == (400, "modalities")
    assert "does not speak" in caught.value.info.message
