"""The size of pictures and frames after resizing is bounded, whatever a request asks for and whatever its media are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from cases import film
from conversations import Film, medium
from driving import finish
from media_files import image_file, picture
from msgspec import structs
from PIL import Image

from omni_pipeline.errors import OmniError
from omni_pipeline.wire.messages import Failed, Start
from omni_pipeline.wire.tensor import Tensor
from stages.messages import ChatRequest, Media, MediaRef, PictureSize, Text, Turn, VideoOptions
from stages.options import PreprocessingOptions
from stages.preprocessing import Preprocessing
from stages.preprocessing.features import Features
from stages.preprocessing.media import MediaReader
from stages.preprocessing.token_limit import TokenLimit

LIMIT = 200_000
PARAM = "messages[0].content[0].video"
SMALL, LARGE = (64, 48), (800, 600)


@pytest.fixture(scope="module")
def stage(stage_context: Any) -> Iterator[Preprocessing]:
    made = Preprocessing(stage_context("preprocessing", readers=2, max_resized_pixels=LIMIT))
    yield made
    made.close()


def of_size(size: tuple[int, int], part: str) -> Media:
    """A picture, a clip, or a clip that consists of pictures."""
    if part == "pictures":
        frames = [Tensor.of(image_file(picture(*size, seed))) for seed in range(4)]
        return Media("video", Tensor.of(b""), PARAM, frames=frames)
    made: Image.Image | Film = picture(*size) if part == "picture" else film(4, width=size[0], height=size[1])
    return medium(made, PARAM)


def result(stage: Preprocessing, item: Media, video: VideoOptions | None = None) -> Any:
    """The message to the image encoder, or the failure."""
    request = ChatRequest([Turn("user", [MediaRef(0), Text("?")])], [item], video or VideoOptions())
    stage.receive(Start("r", "gateway", "preprocessing", request))
    return finish(stage)[0]


def pixels(message: Any) -> int:
    (item,) = message.body.items
    return math.prod(item.grid[1:]) * 16 * 16


@pytest.mark.parametrize("part", ["picture", "clip", "pictures"])
@pytest.mark.parametrize(
    ("size", "asked"),
    [
        (SMALL, {"min_pixels": LIMIT + 1}),
        (SMALL, {"min_pixels": 50_437_058}),
        (SMALL, {"min_pixels": 2**31 - 1}),
        (LARGE, {"max_pixels": 400_000}),
        (LARGE, {"min_pixels": LIMIT + 1, "max_pixels": 2 * LIMIT}),
    ],
)
def test_a_request_for_a_larger_size_is_refused(
    stage: Preprocessing, part: str, size: tuple[int, int], asked: dict[str, int]
) -> None:
    item = of_size(size, part)
    if part == "picture":
        message = result(stage, structs.replace(item, size=PictureSize(**asked)))
        code, what = "image_too_large", "The picture would have "
    else:
        message = result(stage, structs.replace(item, video=VideoOptions(**asked)))
        code, what = "video_too_large", "A frame of the video would have "
        assert result(stage, item, VideoOptions(**asked)) == message
    assert isinstance(message, Failed)
    error = message.error
    assert (error.status, error.code, error.param) == (400, code, PARAM)
    assert error.message.startswith(what)
    assert f"but only {LIMIT} are allowed; lower 'min_pixels' or 'max_pixels'" in error.message


@pytest.mark.parametrize("part", ["picture", "clip", "pictures"])
@pytest.mark.parametrize(
    ("size", "asked", "least", "most"),
    [
        (LARGE, {}, 150_000, LIMIT),
        (LARGE, {"min_pixels": 150_000}, 150_000, LIMIT),
        (LARGE, {"max_pixels": LIMIT}, 150_000, LIMIT),
        (SMALL, {"min_pixels": 150_000}, 150_000, LIMIT),
        (SMALL, {"max_pixels": 2**31 - 1}, 3_072, LIMIT),
    ],
)
def test_every_other_request_gets_pictures_within_the_limit(
    stage: Preprocessing, part: str, size: tuple[int, int], asked: dict[str, int], least: int, most: int
) -> None:
    item = of_size(size, part)
    asked_of = {"size": PictureSize(**asked)} if part == "picture" else {"video": VideoOptions(**asked)}
    assert least <= pixels(result(stage, structs.replace(item, **asked_of))) <= most


def test_the_pixels_of_a_whole_clip_may_exceed_the_limit(stage: Preprocessing) -> None:
    asked = VideoOptions(total_pixels=100 * LIMIT)
    assert 150_000 <= pixels(result(stage, of_size(LARGE, "clip"), asked)) <= LIMIT


def test_a_few_pixels_for_a_whole_clip_do_not_raise_its_frames_above_the_limit(stage_context: Any) -> None:
    """However small `total_pixels` is, a frame may have up to 5 % more pixels than the minimum for a frame. In this
    test, the minimum for a frame equals `max_resized_pixels`, so the additional 5 % must not be allowed.
    """
    with closing(Preprocessing(stage_context("preprocessing", readers=2, max_resized_pixels=100_000))) as stage:
        assert pixels(result(stage, of_size(LARGE, "clip"), VideoOptions(total_pixels=1))) <= 100_000


def test_the_limit_is_the_processors_own_bound_unless_it_is_set(processor: Any) -> None:
    features = Features(processor)
    assert features.max_resized_pixels == processor.image_processor.size["longest_edge"] == 12_845_056
    processor.image_processor.size = {"shortest_edge": 65_536, "longest_edge": 92_160}
    try:
        assert Features(processor).max_resized_pixels == 768 * 32 * 32, "frames are larger than pictures here"
    finally:
        processor.image_processor.size = {"shortest_edge": 3136, "longest_edge": 12_845_056}


@pytest.mark.parametrize("part", ["picture", "clip"])
def test_a_file_whose_size_was_not_known_before_is_checked_when_it_is_decoded(processor: Any, part: str) -> None:
    reader = MediaReader(Features(processor, LIMIT), PreprocessingOptions(), TokenLimit(65536))
    asked = {"min_pixels": LIMIT + 1}
    item = structs.replace(of_size(SMALL, part), size=PictureSize(**asked), video=VideoOptions(**asked))
    with pytest.raises(OmniError, match="pixels after resizing") as raised:
        reader.read([item], VideoOptions(), 0)
    assert raised.value.info.param == PARAM
