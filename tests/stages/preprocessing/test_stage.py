"""For every kind of conversation, the stage `preprocessing` gives the same output as the reference's processor."""

from typing import Any

import numpy
import pytest
import torch
from cases import conversations, film
from conversations import Case, names, reference_inputs, reference_positions, request_of, start_of
from driving import finish
from media_files import picture, tone

from omni_pipeline.errors import ErrorInfo
from omni_pipeline.wire.messages import Failed, Start
from omni_pipeline.wire.tensor import Tensor
from stages.messages import (
    AudioWork,
    ChatRequest,
    Media,
    MediaRef,
    Prompt,
    Sampling,
    Text,
    TextOutput,
    Turn,
    VideoOptions,
    VisionWork,
)
from stages.preprocessing import Preprocessing

CASES = conversations()
WINDOW_FRAMES = 800  # mel frames in a window of the audio tower: eight seconds


@pytest.fixture(scope="module")
def stage(stage_context: Any) -> Preprocessing:
    return Preprocessing(stage_context("preprocessing"))


def prepared(stage: Preprocessing, case: Case) -> tuple[Prompt, VisionWork | None, AudioWork | None]:
    stage.receive(start_of(case))
    sent = finish(stage)
    assert all(isinstance(message, Start) for message in sent), sent
    by_target = {message.target: message.body for message in sent}
    return by_target["mm_aggregate"], by_target.get("image_encoder"), by_target.get("audio_encoder")


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_equals_the_reference(stage: Preprocessing, processor: Any, thinker: Any, case: Case) -> None:
    prompt, vision, audio = prepared(stage, case)
    expected = reference_inputs(case, processor)
    assert prompt.ids.numpy().tolist() == expected["input_ids"][0].tolist()

    positions, delta = reference_positions(case, expected, thinker)
    n = prompt.ids.shape[0]
    own = torch.arange(n).expand(3, n).float() if prompt.positions is None else prompt.positions.torch()
    torch.testing.assert_close(own, positions, rtol=0, atol=0)
    assert prompt.position_delta == delta

    items = [] if vision is None else vision.items
    images = [item for item, span in zip(items, prompt.vision, strict=True) if span.kind == "image"]
    clips = [item for item, span in zip(items, prompt.vision, strict=True) if span.kind == "video"]
    for kind, values, grids in (
        (images, "pixel_values", "image_grid_thw"),
        (clips, "pixel_values_videos", "video_grid_thw"),
    ):
        assert [list(item.grid) for item in kind] == expected.get(grids, torch.empty(0, 3)).tolist()
        if kind:
            assert torch.equal(torch.cat([item.patches.torch() for item in kind]), expected[values])

    if audio is None:
        assert "input_features" not in expected
    else:
        mask = expected["feature_attention_mask"].bool()
        whole = [mel[:, own] for mel, own in zip(expected["input_features"], mask, strict=True)]
        mels = [window for mel in whole for window in mel.split(WINDOW_FRAMES, dim=1)]
        assert [item.mel.shape for item in audio.items] == [mel.shape for mel in mels]
        assert all(torch.equal(item.mel.torch(), mel) for item, mel in zip(audio.items, mels, strict=True))
        assert audio.pad_frames == min(100, int(mask.sum(-1).max()))


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_spans_are_the_placeholder_rows(stage: Preprocessing, processor: Any, case: Case) -> None:
    prompt, _, _ = prepared(stage, case)
    ids = prompt.ids.numpy()
    for kind, token in (
        ("image", processor.image_token),
        ("video", processor.video_token),
        ("audio", processor.audio_token),
    ):
        rows = [span.rows.numpy() for span in prompt.vision + prompt.audio if span.kind == kind]
        expected = numpy.flatnonzero(ids == processor.tokenizer.convert_tokens_to_ids(token))
        assert (numpy.concatenate(rows) if rows else numpy.empty(0)).tolist() == expected.tolist()


def failure(stage: Preprocessing, request: ChatRequest) -> ErrorInfo:
    stage.receive(Start("r", "gateway", "preprocessing", request))
    (message,) = finish(stage)
    assert isinstance(message, Failed)
    assert not stage.has_work
    return message.error


@pytest.mark.parametrize(
    ("kind", "code"), [("image", "invalid_image"), ("audio", "invalid_audio"), ("video", "invalid_video")]
)
def test_a_corrupt_medium_is_named_by_its_field(stage: Preprocessing, kind: Any, code: str) -> None:
    request = request_of(Case("", [("user", [picture(), tone(1), film(4), "?"])]))
    bad = Media(kind, Tensor.of(b"\0" * 100), "messages[0].content[7]")
    request.media.append(bad)
    request.turns[0].content.append(MediaRef(3))
    error = failure(stage, request)
    assert (error.status, error.code, error.param, error.stage) == (400, code, bad.param, "preprocessing")


@pytest.mark.parametrize(
    ("limit", "case", "code"),
    [
        ({"max_image_pixels": 999}, Case("", [("user", [picture(100, 10)])]), "image_too_large"),
        ({"max_audio_seconds": 1}, Case("", [("user", [tone(1.1)])]), "audio_too_long"),
        ({"max_video_seconds": 1}, Case("", [("user", [film(5)])]), "video_too_long"),
        ({"max_video_frames": 3}, Case("", [("user", [film(5)])]), "video_too_many_frames"),
        ({"max_video_pixels": 6000}, Case("", [("user", [film(5)])]), "video_too_large"),
        ({"max_prompt_tokens": 20}, Case("", [("user", ["word " * 30])]), "context_length_exceeded"),
        ({"max_prompt_tokens": 20}, Case("", [("user", [picture(400, 400)])]), "context_length_exceeded"),
        ({"max_prompt_tokens": 20}, Case("", [("user", [tone(2)])]), "context_length_exceeded"),
        ({"max_prompt_tokens": 300}, Case("", [("user", [film(16)])]), "context_length_exceeded"),
    ],
)
def test_limits_are_kept(stage_context: Any, limit: dict[str, int], case: Case, code: str) -> None:
    stage = Preprocessing(stage_context("preprocessing", **limit))
    error = failure(stage, request_of(case))
    assert (error.status, error.code) == (400, code)
    assert error.param == ("messages" if code == "context_length_exceeded" else "media[0]")


def test_a_prompt_of_exactly_the_limit_is_taken(stage_context: Any, stage: Preprocessing) -> None:
    case = Case("", [("user", [picture(200, 200), "?"])])
    tokens = prepared(stage, case)[0].ids.shape[0]
    exact = Preprocessing(stage_context("preprocessing", max_prompt_tokens=tokens))
    assert prepared(exact, case)[0].ids.shape[0] == tokens
    short = Preprocessing(stage_context("preprocessing", max_prompt_tokens=tokens - 1))
    assert f"resulted in {tokens} tokens" in failure(short, request_of(case)).message


def test_a_sound_too_short_for_the_reference_is_padded(stage: Preprocessing) -> None:
    _, _, audio = prepared(stage, Case("", [("user", [tone(1)[:100], "?"])]))
    assert audio is not None
    assert audio.items[0].mel.shape == (128, 2)


def test_a_clip_of_one_frame_is_seen(stage: Preprocessing) -> None:
    _, vision, _ = prepared(stage, Case("", [("user", [film(1), "?"])]))
    assert vision is not None
    assert vision.items[0].grid[0] == 1


@pytest.mark.parametrize(
    ("options", "least", "most"),
    [
        (VideoOptions(), 128 * 1024, 768 * 1024),
        (VideoOptions(max_pixels=50_000), 0, 50_000),
        (VideoOptions(min_pixels=300_000), 300_000, 768 * 1024),
        (VideoOptions(min_pixels=10_000, total_pixels=80_000), 10_000, 40_000),
    ],
)
def test_the_size_of_frames_is_bounded(stage: Preprocessing, options: VideoOptions, least: int, most: int) -> None:
    _, vision, _ = prepared(stage, Case("", [("user", [film(4, width=320, height=240)])], options))
    assert vision is not None
    _, height, width = vision.items[0].grid
    assert least <= height * width * 16 * 16 <= most


def test_requests_are_answered_one_by_one_in_order(stage: Preprocessing) -> None:
    for number in range(3):
        stage.receive(start_of(CASES[0], str(number)))
    assert [message.request_id for _ in range(3) for message in stage.step()] == ["0", "1", "2"]
    assert not stage.has_work


def test_an_aborted_request_is_forgotten(stage: Preprocessing) -> None:
    stage.receive(start_of(CASES[0], "kept"))
    stage.receive(start_of(CASES[0], "gone"))
    stage.abort("gone")
    stage.abort("unknown")
    assert list(stage.live()) == ["kept"]
    assert [message.request_id for message in finish(stage)] == ["kept"]
    assert not stage.has_work


def test_the_encoders_get_their_work_before_the_prompt_is_sent(stage: Preprocessing) -> None:
    stage.receive(start_of(next(case for case in CASES if case.name == "everything")))
    assert [message.target for message in finish(stage)] == ["image_encoder", "audio_encoder", "mm_aggregate"]


def test_sampling_and_text_options_are_passed_on(stage: Preprocessing) -> None:
    request = ChatRequest([Turn("user", [Text("x")])], thinker=Sampling(seed=7), text=TextOutput(stop=["y"]))
    stage.receive(Start("r", "gateway", "preprocessing", request))
    (message,) = stage.step()
    assert (message.body.thinker, message.body.text) == (request.thinker, request.text)
