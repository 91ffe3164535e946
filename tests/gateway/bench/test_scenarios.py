"""Tests the bodies that the bench sends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.api.schema import ChatCompletionRequest
from gateway.bench.prompts import make_prompts
from gateway.bench.scenarios import MIX, Input, MediaAs, Output, Scenario, body, explanation, kinds_of
from omni_pipeline.errors import StartupError
from tests.gateway.json_bodies import parse


def sent(data: Path, **scenario: Any) -> dict[str, Any]:
    """The body of a scenario's first request."""
    asked = Scenario(**scenario)
    return json.loads(body(asked, make_prompts(asked, 1, seed=0, directory=data)[0], "m"))


def test_text_request_has_a_fixed_length(data: Path) -> None:
    fields = sent(data, prompt_words=5, tokens=7)
    assert len(fields["messages"][0]["content"].split()) == 5
    assert (fields["max_tokens"], fields["ignore_eos"], fields["modalities"]) == (7, True, ["text"])
    assert (fields["stream"], fields["stream_options"]) == (True, {"include_usage": True})


def test_natural_request_only_has_limits(data: Path) -> None:
    fields = sent(data, output=Output.SPEECH, natural=True)
    assert {"ignore_eos", "talker_max_new_tokens"} & fields.keys() == set()


def test_speech_request_asks_for_one_talker_token_more_than_frames(data: Path) -> None:
    fields = sent(data, output=Output.SPEECH, audio_frames=40, voice="chelsie", audio_format="pcm16")
    assert fields["modalities"] == ["text", "audio"]
    assert fields["audio"] == {"format": "pcm16", "voice": "chelsie"}
    assert fields["talker_max_new_tokens"] == 41


def test_whole_speech_is_not_streamed(data: Path) -> None:
    fields = sent(data, output=Output.WHOLE_SPEECH, audio_frames=40)
    assert {"stream", "stream_options"} & fields.keys() == set()
    assert (fields["modalities"], fields["talker_max_new_tokens"]) == (["text", "audio"], 41)


@pytest.mark.parametrize("count", [1, 6, 40])
def test_every_part_of_a_mixed_run_has_the_same_shares(count: int) -> None:
    kinds = kinds_of(Scenario(output=Output.MIXED, tokens=5), count, seed=0)
    assert len(kinds) == count
    assert {kind.tokens for kind in kinds} == {5}
    outputs = [kind.output for kind in kinds]
    for start in range(0, count - 3, 4):
        assert sorted(outputs[start : start + 4]) == sorted(MIX)


def test_order_of_a_mixed_run_is_random_and_repeatable() -> None:
    mixed = Scenario(output=Output.MIXED)
    assert kinds_of(mixed, 40, seed=1) == kinds_of(mixed, 40, seed=1) != kinds_of(mixed, 40, seed=2)
    assert kinds_of(mixed, 40, seed=1)[:4] != kinds_of(mixed, 40, seed=1)[4:8]


def test_plain_run_has_one_kind() -> None:
    assert kinds_of(Scenario(tokens=5), 3, seed=0) == [Scenario(tokens=5)] * 3


@pytest.mark.parametrize(
    ("input_", "kinds"),
    [
        (Input.IMAGE, ["image"]),
        (Input.AUDIO, ["audio"]),
        (Input.VIDEO, ["video"]),
        (Input.MIXED, ["image", "video", "audio"]),
    ],
)
def test_media_are_data_urls_before_the_words_or_in_lists(data: Path, input_: Input, kinds: list[str]) -> None:
    *parts, text = sent(data, input=input_)["messages"][0]["content"]
    assert [part["type"] for part in parts] == [f"{kind}_url" for kind in kinds]
    assert text["type"] == "text"
    fields = sent(data, input=input_, media_as=MediaAs.LISTS)
    for kind, part in zip(kinds, parts, strict=True):
        assert fields[f"{kind}s"] == [part[f"{kind}_url"]["url"]]
        assert fields[f"{kind}s"][0].startswith(f"data:{kind}/")


@pytest.mark.parametrize("media_as", MediaAs)
@pytest.mark.parametrize("input_", Input)
def test_this_server_takes_every_text_scenario(data: Path, input_: Input, media_as: MediaAs) -> None:
    fields = sent(data, input=input_, media_as=media_as)
    assert isinstance(parse(json.dumps(fields).encode()), ChatCompletionRequest)


def test_prompts_are_the_same_for_the_same_seed(data: Path) -> None:
    scenario = Scenario(input=Input.MIXED)
    first, again = (make_prompts(scenario, 2, seed=3, directory=data) for _ in range(2))
    assert first == again
    assert make_prompts(scenario, 2, seed=4, directory=data) != first


def test_no_two_requests_share_words_or_media(data: Path) -> None:
    prompts = make_prompts(Scenario(input=Input.MIXED), 4, seed=0, directory=data)
    assert len({prompt.text for prompt in prompts}) == 4
    assert len({medium.data for prompt in prompts for medium in prompt.media}) == 12


def test_same_media_are_the_files_in_turn(data: Path) -> None:
    prompts = make_prompts(Scenario(input=Input.AUDIO, same_media=True), 3, seed=0, directory=data)
    files = [(data / name).read_bytes() for name in ("query_to_cars.wav", "query_to_draw.wav", "query_to_cars.wav")]
    assert [prompt.media[0].data for prompt in prompts] == files


def test_missing_media_are_told_with_the_flag(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"no video \(.mp4\) in .*--media-dir"):
        make_prompts(Scenario(input=Input.VIDEO), 1, seed=0, directory=tmp_path)


@pytest.mark.parametrize(
    ("param", "message", "flag"),
    [
        ("ignore_eos", "Unknown parameter.", "--natural"),
        ("talker_max_new_tokens", "Unknown parameter.", "--audio-frames"),
        ("messages[0].content[1].video_url.url", "No video.", "--media-as lists"),
        (None, "[{'type': 'extra_forbidden', 'loc': ('body', 'ignore_eos')}]", "--natural"),
    ],
)
def test_refused_field_is_explained_by_its_flag(param: str | None, message: str, flag: str) -> None:
    assert flag in (explanation(param, message) or "")


@pytest.mark.parametrize(("param", "message"), [(None, "The audio encoder is down."), ("seed", "Too large.")])
def test_other_refusals_are_left_alone(param: str | None, message: str) -> None:
    assert explanation(param, message) is None
