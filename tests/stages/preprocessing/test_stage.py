"""preprocessing gives what the reference's processor gives, for every kind of conversation."""

from typing import Any

import numpy
import pytest
import torch
from cases import conversations
from conversations import Case, names, reference_inputs, reference_positions, start_of

from omni_pipeline.wire import Start
from stages.messages import AudioWork, Prompt, VisionWork
from stages.preprocessing import Preprocessing

CASES = conversations()


@pytest.fixture(scope="module")
def stage(stage_context: Any) -> Preprocessing:
    return Preprocessing(stage_context("preprocessing"))


def prepared(stage: Preprocessing, case: Case) -> tuple[Prompt, VisionWork | None, AudioWork | None]:
    stage.receive(start_of(case))
    sent = list(stage.step())
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
        mels = [mel[:, own] for mel, own in zip(expected["input_features"], mask, strict=True)]
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
