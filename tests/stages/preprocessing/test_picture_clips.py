"""Our code and the reference convert a clip that is sent as pictures to the same input."""

from __future__ import annotations

import io
import select
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy
import pytest
import torch
from conversations import Case, reference_positions
from driving import PATIENCE_SECONDS, finish
from media_files import image_file, moving_pictures
from msgspec import structs
from PIL import Image, ImageOps

from omni_pipeline.errors import ErrorInfo
from omni_pipeline.wire.messages import Claim, Failed, Start
from omni_pipeline.wire.tensor import Tensor
from stages.messages import ChatRequest, Media, MediaRef, Prompt, Text, Turn, VideoOptions, VisionWork
from stages.preprocessing import Preprocessing

QUESTION = "What moves?"
PARAM = "messages[0].content[0].video"


@pytest.fixture(scope="module")
def stage(stage_context: Any) -> Iterator[Preprocessing]:
    made = Preprocessing(stage_context("preprocessing", readers=2))
    yield made
    made.close()


def pictures(count: int, width: int = 96, height: int = 64) -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in moving_pictures(count, width, height)]


def start_of(files: Sequence[bytes], fps: float | None, video: VideoOptions) -> Start[ChatRequest]:
    own = None if fps is None else structs.replace(video, fps=fps)
    clip = Media("video", Tensor.of(b""), PARAM, video=own, frames=[Tensor.of(file) for file in files])
    request = ChatRequest([Turn("user", [MediaRef(0), Text(QUESTION)])], [clip], video)
    return Start("r", "gateway", "preprocessing", request)


def prepared(
    stage: Preprocessing, files: Sequence[bytes], fps: float | None = None, video: VideoOptions | None = None
) -> dict[str, Any]:
    """The bodies that the stage sends for a clip of these files, by target."""
    stage.receive(start_of(files, fps, video or VideoOptions()))
    sent = finish(stage)
    assert all(isinstance(message, Start) for message in sent), sent
    return {message.target: message.body for message in sent}


def refusal(stage: Preprocessing, files: Sequence[bytes], fps: float | None = None) -> ErrorInfo:
    stage.receive(start_of(files, fps, VideoOptions()))
    (message,) = finish(stage)
    assert isinstance(message, Failed)
    return message.error


def reference(processor: Any, frames: Sequence[Image.Image], rate: float, *, heard: bool) -> Any:
    """The result of the reference's processor for the same frames. The sound of a clip of pictures is silence."""
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    prompt = [{"role": "user", "content": content}]
    silence = numpy.zeros(round(len(frames) / rate * 16_000), numpy.float32)
    return processor(
        text=processor.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False),
        videos=[numpy.stack([numpy.asarray(frame.convert("RGB")) for frame in frames])],
        audio=[silence] if heard else None,
        fps=rate,
        do_sample_frames=False,
        cap_pixels_per_frame=False,
        use_audio_in_video=heard,
        return_tensors="pt",
        padding=True,
    )


def check(sent: dict[str, Any], expected: Any, thinker: Any, *, heard: bool = False) -> None:
    """Compare tokens, positions and pixels."""
    prompt: Prompt = sent["mm_aggregate"]
    vision: VisionWork = sent["image_encoder"]
    assert prompt.ids.numpy().tolist() == expected["input_ids"][0].tolist()
    positions, delta = reference_positions(Case("", [], VideoOptions(use_audio=heard)), expected, thinker)
    assert prompt.positions is not None
    torch.testing.assert_close(prompt.positions.torch(), positions, rtol=0, atol=0)
    assert prompt.position_delta == delta
    [item] = vision.items
    assert [list(item.grid)] == expected["video_grid_thw"].tolist()
    assert torch.equal(item.patches.torch(), expected["pixel_values_videos"])


@pytest.mark.parametrize(
    ("count", "fps", "options", "rate"),
    [
        (8, None, VideoOptions(), 2),
        (9, None, VideoOptions(), 2),  # more than are decoded at a time, and an odd number
        (1, None, VideoOptions(), 2),
        (3, 1.0, VideoOptions(), 1),
        (4, 0.5, VideoOptions(fps=8), 0.5),
        (4, None, VideoOptions(fps=8), 8),
        (6, 24.0, VideoOptions(max_frames=2), 24),  # all frames are used
        (6, 2.0, VideoOptions(use_audio=True), 2),
        (5, 0.7, VideoOptions(use_audio=True), 0.7),
    ],
)
def test_equals_the_reference(
    stage: Preprocessing,
    processor: Any,
    thinker: Any,
    count: int,
    fps: float | None,
    options: VideoOptions,
    rate: float,
) -> None:
    frames = pictures(count)
    sent = prepared(stage, [image_file(frame) for frame in frames], fps, options)
    expected = reference(processor, frames, rate, heard=options.use_audio)
    check(sent, expected, thinker, heard=options.use_audio)


def test_frames_are_read_as_pictures_are(stage: Preprocessing, processor: Any, thinker: Any) -> None:
    """The files are JPEGs of one size. Like pictures from phones, the files have an EXIF entry which says that the
    picture must be rotated.
    """
    turned = Image.Exif()
    turned[0x0112] = 6
    files = [image_file(frame, "JPEG", quality=90, exif=turned) for frame in pictures(4)]
    frames = [ImageOps.exif_transpose(Image.open(io.BytesIO(file))) for file in files]
    assert frames[0].size == (64, 96)
    check(prepared(stage, files), reference(processor, frames, 2, heard=False), thinker)


def test_frames_of_other_sizes_are_scaled_to_the_first(stage: Preprocessing, processor: Any, thinker: Any) -> None:
    frames = [*pictures(2), *pictures(1, 50, 70), *pictures(1, 300, 200)]
    scaled = [frame.resize((96, 64), Image.Resampling.BICUBIC) for frame in frames]
    sent = prepared(stage, [image_file(frame) for frame in frames])
    check(sent, reference(processor, scaled, 2, heard=False), thinker)


@pytest.mark.parametrize("place", [0, 2])
def test_a_damaged_frame_is_named(stage: Preprocessing, place: int) -> None:
    files = [image_file(frame) for frame in pictures(4)]
    for damaged in (b"\0" * 100, files[0][: len(files[0]) // 2]):
        error = refusal(stage, [*files[:place], damaged, *files[place + 1 :]])
        assert (error.status, error.code, error.param) == (400, "invalid_image", PARAM)
        assert error.message.startswith(f"Frame {place + 1} of 4: The image")


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ({"max_video_frames": 5}, "video_too_many_frames"),
        ({"max_video_pixels": 96 * 64 - 1}, "image_too_large"),
        ({"max_video_total_pixels": 6 * 96 * 64 - 1}, "video_too_large"),
        ({"max_video_seconds": 2}, "video_too_long"),
        ({"max_prompt_tokens": 100}, "context_length_exceeded"),
    ],
)
def test_limits_are_kept(stage_context: Any, limit: dict[str, int], code: str) -> None:
    limited = Preprocessing(stage_context("preprocessing", readers=2, **limit))
    try:
        error = refusal(limited, [image_file(frame) for frame in pictures(6)])
    finally:
        limited.close()
    assert (error.status, error.code) == (400, code)
    assert error.param == ("messages" if code == "context_length_exceeded" else PARAM)


def test_small_frames_count_as_much_as_the_first(stage_context: Any) -> None:
    """Each frame will be scaled to the size of the first frame."""
    limited = Preprocessing(stage_context("preprocessing", readers=2, max_video_total_pixels=3 * 96 * 64 - 1))
    try:
        error = refusal(limited, [image_file(frame) for frame in (*pictures(1), *pictures(2, 8, 8))])
    finally:
        limited.close()
    assert error.code == "video_too_large"


def claim_of(stage: Preprocessing, files: Sequence[bytes]) -> Claim:
    stage.receive(start_of(files, None, VideoOptions()))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if not stage.has_work:
            select.select([stage.waits_on], [], [], 0.2)
            continue
        for message in stage.step():
            stage.abort("r")
            assert isinstance(message, Claim)
            return message
    raise TimeoutError


def test_memory_is_claimed_for_the_largest_frame_and_for_all_rows(stage: Preprocessing) -> None:
    small, large = (image_file(frame) for frame in (*pictures(1), *pictures(1, 300, 200)))
    alone, with_large, longer = (
        claim_of(stage, files) for files in ([small] * 4, [small, large, small, small], [small] * 8)
    )
    assert with_large.passing - alone.passing == 3 * 4 * (300 * 200 - 96 * 64)
    assert with_large.lasting == alone.lasting
    assert longer.lasting == 2 * alone.lasting
