"""The stage `mm_aggregate` builds the thinker's request, in whatever order the parts of the request arrive."""

from itertools import permutations
from typing import Any

import pytest
import torch

from omni_pipeline.wire.messages import Start
from omni_pipeline.wire.tensor import Tensor
from stages.messages import AudioRows, MediaSpan, Prompt, Sampling, TextOutput, ThinkerRequest, VisionRows
from stages.mm_aggregate.cache_ids import FIRST_CACHE_ID
from stages.mm_aggregate.stage import Aggregate

HIDDEN, LAYERS, LENGTH = 4, 3, 12
# The rows of a picture, of a clip, and of the clip's sound. The rows of the clip alternate with the rows of the sound.
IMAGE, CLIP, SOUND = [1, 2], [5, 7, 8], [6, 9]


@pytest.fixture
def stage(stage_context: Any) -> Aggregate:
    return Aggregate(stage_context("mm_aggregate"))


def key(name: str) -> bytes:
    return name.encode().ljust(32, b".")


def span(kind: Any, name: str, rows: list[int]) -> MediaSpan:
    return MediaSpan(kind, key(name), Tensor.of(torch.tensor(rows)))


def prompt(
    vision: list[MediaSpan] = (), audio: list[MediaSpan] = (), scale: float = 1.0, plain: bool = False
) -> Prompt:
    positions = None if plain else Tensor.of(torch.arange(LENGTH).mul(scale).expand(3, LENGTH).contiguous())
    ids = Tensor.of(torch.arange(100, 100 + LENGTH))
    return Prompt(ids, positions, 2.5, list(vision), list(audio), Sampling(seed=3), TextOutput(stop=["x"]))


def rows_from(start: int, count: int) -> torch.Tensor:
    """Embedding rows. The values of a row are the row's number, so that each row can be recognised."""
    return (torch.arange(start, start + count).float()[:, None]).expand(count, HIDDEN).contiguous()


def layers_from(start: int, count: int) -> torch.Tensor:
    return torch.stack([rows_from(start + 1000 * layer, count) for layer in range(1, LAYERS + 1)])


def full_prompt(**changes: Any) -> Prompt:
    return prompt(
        [span("image", "image", IMAGE), span("video", "clip", CLIP)], [span("audio", "sound", SOUND)], **changes
    )


def vision_rows() -> VisionRows:
    return VisionRows(
        [Tensor.of(rows_from(10, 2)), Tensor.of(rows_from(20, 3))],
        [Tensor.of(layers_from(10, 2)), Tensor.of(layers_from(20, 3))],
    )


def audio_rows() -> AudioRows:
    return AudioRows([Tensor.of(rows_from(30, 2))])


def send(stage: Aggregate, *bodies: Any, request_id: str = "r") -> None:
    for body in bodies:
        stage.receive(Start(request_id, "any", "mm_aggregate", body))


def built(stage: Aggregate, *bodies: Any) -> ThinkerRequest:
    send(stage, *bodies)
    (message,) = stage.step()
    assert (message.target, message.request_id) == ("thinker", "r")
    return message.body


def cache_ids(stage: Aggregate, changed: Prompt) -> list[int]:
    return built(stage, changed, vision_rows(), audio_rows()).cache_ids.torch().tolist()


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_parts_may_arrive_in_any_order(stage: Aggregate, order: tuple[int, ...]) -> None:
    parts = [full_prompt(), vision_rows(), audio_rows()]
    for part in order[:-1]:
        send(stage, parts[part])
        assert not stage.has_work
    request = built(stage, parts[order[-1]])
    assert request.media_rows.torch().tolist() == [1, 2, 5, 6, 7, 8, 9]
    assert request.media_embeds.torch()[:, 0].tolist() == [10, 11, 20, 30, 21, 22, 31]
    assert request.visual_rows.torch().tolist() == [1, 2, 5, 7, 8]
    assert request.deepstack.torch()[:, :, 0].tolist() == [
        [start + value for value in (10, 11, 20, 21, 22)] for start in (1000, 2000, 3000)
    ]
    assert request.media_tokens == {"image": 2, "video": 3, "audio": 2}
    assert not stage.live()


def test_a_clip_before_a_picture_keeps_each_in_its_rows(stage: Aggregate) -> None:
    swapped = prompt([span("image", "image", [8, 9]), span("video", "clip", [2, 3, 4])])
    request = built(stage, swapped, vision_rows())
    assert request.media_embeds.torch()[:, 0].tolist() == [20, 21, 22, 10, 11]
    assert request.deepstack.torch()[0, :, 0].tolist() == [1020, 1021, 1022, 1010, 1011]


def test_text_alone_needs_nothing_more(stage: Aggregate) -> None:
    request = built(stage, prompt(plain=True))
    assert request.cache_ids.torch().tolist() == request.ids.torch().tolist()
    assert request.media_rows is request.media_embeds is request.visual_rows is request.deepstack is None
    assert (request.media_tokens, request.thinker.seed, request.text.stop) == ({}, 3, ["x"])


def test_sound_alone_has_no_visual_rows(stage: Aggregate) -> None:
    request = built(stage, prompt(audio=[span("audio", "sound", SOUND)], plain=True), audio_rows())
    assert request.media_rows.torch().tolist() == SOUND
    assert request.visual_rows is request.deepstack is None


def test_cache_ids_are_the_ids_except_at_media_rows(stage: Aggregate) -> None:
    ids = cache_ids(stage, full_prompt())
    media = {*IMAGE, *CLIP, *SOUND}
    assert all(id_ == 100 + row for row, id_ in enumerate(ids) if row not in media)
    numbers = [ids[row] for row in sorted(media)]
    assert all(FIRST_CACHE_ID <= number < 2**63 for number in numbers)
    assert len(set(numbers)) == len(numbers)


def test_the_same_media_at_the_same_place_have_the_same_cache_ids(stage: Aggregate) -> None:
    assert cache_ids(stage, full_prompt()) == cache_ids(stage, full_prompt())


def test_written_out_and_plain_positions_have_the_same_cache_ids(stage: Aggregate) -> None:
    assert cache_ids(stage, full_prompt()) == cache_ids(stage, full_prompt(plain=True))


def test_another_picture_shares_no_cache_id(stage: Aggregate) -> None:
    other = prompt([span("image", "other", IMAGE), span("video", "clip", CLIP)], [span("audio", "sound", SOUND)])
    first, second = cache_ids(stage, full_prompt()), cache_ids(stage, other)
    assert not {first[row] for row in IMAGE} & {second[row] for row in IMAGE}
    assert [first[row] for row in CLIP + SOUND] == [second[row] for row in CLIP + SOUND]


def test_the_same_clip_at_another_speed_shares_no_cache_id(stage: Aggregate) -> None:
    first, second = cache_ids(stage, full_prompt()), cache_ids(stage, full_prompt(scale=1.5))
    assert not {first[row] for row in CLIP} & {second[row] for row in CLIP}


@pytest.mark.parametrize("arrived", range(1, 8))
def test_an_abort_in_any_state_frees_everything(stage: Aggregate, arrived: int) -> None:
    parts = [full_prompt(), vision_rows(), audio_rows()]
    send(stage, *(part for index, part in enumerate(parts) if arrived >> index & 1), request_id="gone")
    stage.abort("gone")
    assert not stage.live()
    assert not stage.has_work
    assert not list(stage.step())


def test_an_abort_between_two_answers_of_a_step_holds_back_the_second(stage: Aggregate) -> None:
    send(stage, prompt(plain=True), request_id="first")
    send(stage, prompt(plain=True), request_id="second")
    answers = iter(stage.step())
    assert next(answers).request_id == "first"
    stage.abort("second")
    assert not list(answers)
