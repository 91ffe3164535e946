"""The encoders' embeddings equal the reference's embeddings for single requests, for batches of several requests, and
for media from the cache.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from media_files import moving_pictures, picture, tone

from omni_pipeline.wire.messages import Start
from omni_pipeline.wire.tensor import Tensor
from stages.encoders.audio_encoder import AudioEncoder
from stages.encoders.image_encoder import ImageEncoder
from stages.messages import AudioRows, AudioWork, VideoOptions, VisionItem, VisionRows, VisionWork
from stages.preprocessing.features import Features
from tests.device import EXACTNESS
from tests.stages.plans import weight_bytes

TOLERANCE = {"rtol": 0, "atol": EXACTNESS.embeddings}


@pytest.fixture(scope="session")
def features(processor: Any) -> Features:
    return Features(processor)


MANY = 32  # more requests than any test sends


@pytest.fixture(scope="session")
def vision_works(features: Features) -> list[VisionWork]:
    """Requests with pictures of several sizes, and a request with a clip."""
    works = [
        VisionWork([features.picture(picture(160, 96))]),
        VisionWork([features.picture(picture(*size)) for size in ((33, 200, 1), (64, 64, 2), (640, 200, 3))]),
        VisionWork([features.picture(picture(1, 1))]),
    ]
    frames = numpy.stack(moving_pictures(6))
    works.append(VisionWork([features.clip([frames], features.frame_size(VideoOptions(), 6))]))
    return works


@pytest.fixture(scope="session")
def audio_works(features: Features) -> list[AudioWork]:
    """Requests with sounds from 25 ms to 20 s. In some requests, all sounds are shorter than a second."""
    lengths = [[2.3], [0.4], [0.025], [1.0, 0.31, 3.999], [0.62, 0.4], [20.0], [8.0, 16.01]]
    return [features.sounds([tone(seconds, seed=i) for i, seconds in enumerate(request)]) for request in lengths]


@pytest.fixture(scope="session")
def image_encoder(stage_context: Any) -> ImageEncoder:
    return ImageEncoder(stage_context("image_encoder", cache_bytes=0, max_batch=MANY))


@pytest.fixture(scope="session")
def audio_encoder(stage_context: Any) -> AudioEncoder:
    return AudioEncoder(stage_context("audio_encoder", cache_bytes=0, max_batch=MANY))


def encoded(stage: Any, works: Sequence[Any], batches: list[list[str]] | None = None) -> list[Any]:
    """The stage's answers to `works`, which the stage gets all at once. Adds the ids of each batch to `batches`."""
    for number, work in enumerate(works):
        stage.receive(Start(str(number), "preprocessing", stage.name, work))
    answers = {}
    while stage.has_work:
        answers |= {message.request_id: message.body for message in stage.step()}
        if batches is not None:
            batches.append(stage.batch)
    assert not stage.live()
    return [answers[str(number)] for number in range(len(works))]


def assert_vision_equals_reference(work: VisionWork, rows: VisionRows, thinker: Any) -> None:
    with torch.inference_mode():
        patches = torch.cat([item.patches.torch() for item in work.items])
        expected = thinker.get_image_features(patches, torch.tensor([item.grid for item in work.items]))
    for index in range(len(work.items)):
        torch.testing.assert_close(rows.embeds[index].torch(), expected.pooler_output[index], **TOLERANCE)
        layers = torch.stack([layer[index] for layer in expected.deepstack_features])
        torch.testing.assert_close(rows.deepstack[index].torch(), layers, **TOLERANCE)


def assert_audio_equals_reference(work: AudioWork, rows: AudioRows, thinker: Any) -> None:
    mels = [item.mel.torch() for item in work.items]
    padded = torch.nn.utils.rnn.pad_sequence([mel.T for mel in mels], batch_first=True).transpose(1, 2)
    lengths = torch.tensor([mel.shape[1] for mel in mels])
    mask = torch.arange(padded.shape[2]) < lengths[:, None]
    with torch.inference_mode():
        expected = thinker.get_audio_features(padded, mask.long()).last_hidden_state
    torch.testing.assert_close(torch.cat([own.torch() for own in rows.embeds]), expected, **TOLERANCE)


def test_each_vision_request_alone_equals_the_reference(
    image_encoder: ImageEncoder, vision_works: list[VisionWork], thinker: Any
) -> None:
    for work in vision_works:
        assert_vision_equals_reference(work, encoded(image_encoder, [work])[0], thinker)


def test_vision_requests_in_one_batch_equal_the_reference(
    image_encoder: ImageEncoder, vision_works: list[VisionWork], thinker: Any
) -> None:
    batches: list[list[str]] = []
    for work, rows in zip(vision_works, encoded(image_encoder, vision_works, batches), strict=True):
        assert_vision_equals_reference(work, rows, thinker)
    assert batches == [["0", "1", "2", "3"]]


def test_each_audio_request_alone_equals_the_reference(
    audio_encoder: AudioEncoder, audio_works: list[AudioWork], thinker: Any
) -> None:
    for work in audio_works:
        assert_audio_equals_reference(work, encoded(audio_encoder, [work])[0], thinker)


def test_audio_requests_in_one_batch_equal_the_reference(
    audio_encoder: AudioEncoder, audio_works: list[AudioWork], thinker: Any
) -> None:
    batches: list[list[str]] = []
    for work, rows in zip(audio_works, encoded(audio_encoder, audio_works, batches), strict=True):
        assert_audio_equals_reference(work, rows, thinker)
    assert max(map(len, batches)) > 1


@pytest.mark.parametrize(
    ("max_batch", "batches"), [(None, [["0"], ["1"], ["2"], ["3"]]), (3, [["0", "1", "2"], ["3"]])]
)
def test_a_batch_has_the_media_of_so_many_requests(
    max_batch: int | None, batches: list[list[str]], stage_context: Any, vision_works: list[VisionWork], thinker: Any
) -> None:
    """By default, one request on a CPU."""
    stage = ImageEncoder(stage_context("image_encoder", cache_bytes=0, max_batch=max_batch))
    found: list[list[str]] = []
    for work, rows in zip(vision_works, encoded(stage, vision_works, found), strict=True):
        assert_vision_equals_reference(work, rows, thinker)
    assert found == batches


def test_the_same_short_sound_in_other_company_is_another_item(features: Features) -> None:
    sound = tone(0.4)
    alone, with_longer = features.sounds([sound]).items[0], features.sounds([sound, tone(0.9)]).items[0]
    assert alone.key != with_longer.key


def test_a_small_row_limit_splits_the_work_but_not_the_answers(
    stage_context: Any, vision_works: list[VisionWork], thinker: Any
) -> None:
    stage = ImageEncoder(stage_context("image_encoder", cache_bytes=0, max_batch=MANY, max_batch_tokens=20))
    for work, rows in zip(vision_works, encoded(stage, vision_works), strict=True):
        assert_vision_equals_reference(work, rows, thinker)


def test_a_long_clip_delays_another_picture_by_one_piece(stage_context: Any, vision_works: list[VisionWork]) -> None:
    stage = ImageEncoder(stage_context("image_encoder", cache_bytes=0, max_batch=MANY, max_batch_tokens=20))
    picture_work, *_, clip_work = vision_works
    (clip,) = clip_work.items
    assert clip.grid[0] == len(list(stage.pieces(clip))) == 3
    expected = encoded(stage, [clip_work])[0]
    for name, work in (("clip", clip_work), ("picture", picture_work)):
        stage.receive(Start(name, "preprocessing", stage.name, work))
    steps = []
    while stage.has_work:
        messages = list(stage.step())
        steps.append((list(stage.batch), {message.request_id: message.body for message in messages}))
    assert [(batch, list(answers)) for batch, answers in steps] == [
        (["clip"], []),
        (["picture"], ["picture"]),
        (["clip"], []),
        (["clip"], ["clip"]),
    ]
    (rows,) = steps[-1][1]["clip"].embeds
    assert torch.equal(rows.torch(), expected.embeds[0].torch())


def test_a_client_with_many_clips_delays_another_client_by_one_piece(
    stage_context: Any, vision_works: list[VisionWork]
) -> None:
    stage = ImageEncoder(stage_context("image_encoder", cache_bytes=0, max_batch=MANY, max_batch_tokens=20))
    (small,), (clip,) = vision_works[0].items, vision_works[3].items
    for number in range(5):
        other = VisionItem(b"clip %d" % number, clip.grid, clip.patches)
        stage.receive(Start(f"clip{number}", "preprocessing", stage.name, VisionWork([other], sender=1)))
    served, pictures = [], 0
    while stage.has_work:
        if pictures < 3 and "picture" not in stage.live():
            picture = VisionItem(b"picture %d" % pictures, small.grid, small.patches)
            stage.receive(Start("picture", "preprocessing", stage.name, VisionWork([picture], sender=2)))
            pictures += 1
        list(stage.step())
        served.append("".join(stage.batch))
    assert [name.startswith("picture") for name in served[:6]] in ([True, False] * 3, [False, True] * 3)
    assert len(served) == 3 + 5 * len(list(stage.pieces(clip)))


def test_pieces_of_an_aborted_clip_are_forgotten(stage_context: Any, vision_works: list[VisionWork]) -> None:
    stage = ImageEncoder(stage_context("image_encoder", cache_bytes=0, max_batch=MANY, max_batch_tokens=20))
    for name in ("gone", "kept"):
        stage.receive(Start(name, "preprocessing", stage.name, vision_works[3]))
    assert not list(stage.step())
    stage.abort("gone")
    assert stage._partly, "the other request still needs the piece"
    stage.abort("kept")
    assert not stage._partly
    assert not stage.has_work


@pytest.mark.parametrize("limit", [104, 208])
def test_a_sound_longer_than_a_batch_is_computed_in_pieces_to_the_same_end(
    limit: int, stage_context: Any, audio_works: list[AudioWork], thinker: Any
) -> None:
    stage = AudioEncoder(stage_context("audio_encoder", cache_bytes=0, max_batch=MANY, max_batch_tokens=limit))
    for work, rows in zip(audio_works, encoded(stage, audio_works), strict=True):
        assert_audio_equals_reference(work, rows, thinker)


def test_equal_items_of_waiting_requests_are_computed_once(stage_context: Any, vision_works: list[VisionWork]) -> None:
    stage = ImageEncoder(stage_context("image_encoder", cache_bytes=0))
    twice = VisionWork([vision_works[0].items[0], vision_works[0].items[0]])
    answers = encoded(stage, [twice, vision_works[0]])
    assert stage.stats()["encoded_items"] == 1
    assert [len(answer.embeds) for answer in answers] == [2, 1]


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_media_seen_before_come_out_of_the_cache_unchanged(
    kind: str, stage_context: Any, vision_works: list[VisionWork], audio_works: list[AudioWork]
) -> None:
    build: Callable[[Any], Any] = ImageEncoder if kind == "image" else AudioEncoder
    works: list[Any] = vision_works if kind == "image" else audio_works
    stage = build(stage_context(f"{kind}_encoder"))
    first = encoded(stage, works)
    computed = stage.stats()["encoded_items"]
    second = encoded(stage, works)
    assert stage.stats()["encoded_items"] == computed == stage.stats()["cache_hits"]
    for before, after in zip(first, second, strict=True):
        assert all(torch.equal(a.torch(), b.torch()) for a, b in zip(before.embeds, after.embeds, strict=True))


def test_the_cache_stays_within_its_bytes(stage_context: Any, vision_works: list[VisionWork]) -> None:
    limit = 60_000
    stage = ImageEncoder(stage_context("image_encoder", cache_bytes=limit))
    encoded(stage, vision_works)
    assert 0 < stage.stats()["cache_bytes"] <= limit


def test_an_aborted_request_is_not_encoded(
    image_encoder: ImageEncoder, vision_works: list[VisionWork], thinker: Any
) -> None:
    image_encoder.receive(Start("gone", "preprocessing", "image_encoder", vision_works[1]))
    before = image_encoder.stats()["encoded_items"]
    image_encoder.abort("gone")
    rows = encoded(image_encoder, vision_works[:1])[0]
    assert image_encoder.stats()["encoded_items"] == before + 1
    assert_vision_equals_reference(vision_works[0], rows, thinker)


def test_answers_own_their_memory(image_encoder: ImageEncoder, vision_works: list[VisionWork]) -> None:
    for rows in encoded(image_encoder, vision_works):
        for tensor in rows.embeds + rows.deepstack:
            assert tensor.torch().untyped_storage().nbytes() == tensor.nbytes


def test_items_that_arrive_over_the_wire_are_encoded_alike(
    image_encoder: ImageEncoder, vision_works: list[VisionWork]
) -> None:
    """Tensors that arrive over the wire are views of read-only frames. They are encoded like other tensors."""
    here = vision_works[0].items[0]
    frame = bytes(here.patches.buffer())
    arrived = VisionItem(here.key, here.grid, Tensor(frame, here.patches.dtype, here.patches.shape))
    local, remote = encoded(image_encoder, [vision_works[0]])[0], encoded(image_encoder, [VisionWork([arrived])])[0]
    assert torch.equal(local.embeds[0].torch(), remote.embeds[0].torch())


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_weights_take_what_the_plan_says(
    kind: str, image_encoder: ImageEncoder, audio_encoder: AudioEncoder, tiny_checkpoint: Path
) -> None:
    stage = image_encoder if kind == "image" else audio_encoder
    held = sum(weight.nbytes for weight in stage._tower.parameters())
    assert held == weight_bytes(tiny_checkpoint, f"{kind}_encoder")
