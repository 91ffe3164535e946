"""The memory that is computed from the sizes of media equals the memory of the tensors that the stages exchange."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cases import media_of_every_kind
from conversations import Case, names, start_of
from driving import finish

from omni_pipeline.wire.tensor import Tensor
from stages.checkpoint.model_config import read
from stages.encoders.audio_encoder import AudioEncoder
from stages.encoders.image_encoder import ImageEncoder
from stages.messages import AudioWork, ThinkerRequest, VisionWork
from stages.mm_aggregate.stage import Aggregate
from stages.preprocessing import Preprocessing
from stages.preprocessing.decoded_size import ByteSizes, DecodedBytes, DecodedMedia, size_in_headers, size_of
from stages.preprocessing.survey import MediumSurvey

CASES = media_of_every_kind()


@pytest.fixture(scope="module")
def stages(stage_context: Any) -> dict[str, Any]:
    factories = {
        "preprocessing": Preprocessing,
        "image_encoder": ImageEncoder,
        "audio_encoder": AudioEncoder,
        "mm_aggregate": Aggregate,
    }
    return {name: factory(stage_context(name)) for name, factory in factories.items()}


@pytest.fixture(scope="module")
def sizes(tiny_checkpoint: Path) -> ByteSizes:
    return ByteSizes.of(read(json.loads((tiny_checkpoint / "config.json").read_text())))


def messages_of(stages: dict[str, Any], case: Case) -> dict[str, Any]:
    """The bodies of the messages for one request, by the stage that receives the message."""
    bodies: dict[str, Any] = {}
    stages["preprocessing"].receive(start_of(case))
    for name, stage in stages.items():
        for message in finish(stage) if name == "preprocessing" else stage.step() if stage.has_work else ():
            bodies[message.target] = message.body
            if message.target in stages:
                stages[message.target].receive(message)
    return bodies


def nbytes(*tensors: Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_bytes_are_those_of_the_tensors(stages: dict[str, Any], sizes: ByteSizes, processor: Any, case: Case) -> None:
    bodies = messages_of(stages, case)
    vision: VisionWork = bodies.get("image_encoder", VisionWork([]))
    audio: AudioWork = bodies.get("audio_encoder", AudioWork([], 100))
    request: ThinkerRequest = bodies["thinker"]
    media = size_of(vision.items, audio.items, processor.image_processor.merge_size)
    found = sizes.bytes_of(media, spoken=False)
    assert found.inputs == nbytes(*(item.patches for item in vision.items), *(item.mel for item in audio.items)) > 0
    assert found.rows == nbytes(request.media_embeds, request.deepstack) > 0


def test_states_for_the_talker_count_only_if_the_answer_is_spoken(sizes: ByteSizes) -> None:
    media = DecodedMedia(visual_rows=3, mel_frames=50, audio_rows=7)
    silent, spoken = (sizes.bytes_of(media, spoken=spoken) for spoken in (False, True))
    assert (silent.heard, spoken.heard) == (0, 10 * sizes.state)
    assert spoken.lasting - silent.lasting == spoken.heard


def test_every_tensor_counts_twice_while_it_travels() -> None:
    found = DecodedBytes(pixels=1, inputs=10, rows=100, heard=1000)
    assert (found.passing, found.lasting) == (1 + 2 * 10 + 100, 100 + 1000)


def test_five_large_pictures_of_the_published_model_are_gigabytes(data: Path) -> None:
    sizes = ByteSizes.of(read(json.loads((data / "qwen3_omni_30b" / "config.json").read_text())))
    found = sizes.bytes_of(DecodedMedia(visual_rows=5 * 12544), spoken=False)
    assert found.inputs == 5 * 50176 * 1536 * 4
    assert found.rows == 5 * 12544 * 4 * 2048 * 4


def test_false_headers_claim_no_more_than_a_prompt_holds(data: Path) -> None:
    sizes = ByteSizes.of(read(json.loads((data / "qwen3_omni_30b" / "config.json").read_text())))
    hours = [MediumSurvey("audio", sound_seconds=3600.0, rows=46800)] * 64
    found = size_in_headers(hours, mel_rate=100.0, most_rows=65536)
    assert found == DecodedMedia(visual_rows=0, mel_frames=504123, audio_rows=65536, pixels=0)
    assert sizes.bytes_of(found, spoken=True).lasting == 2 * 65536 * 2048 * 4


def test_pixels_of_the_largest_item_are_in_memory_at_a_time() -> None:
    surveys = [
        MediumSurvey("image", 100, 100, frames=1, taken=1, rows=9, least_rows=9),
        MediumSurvey("video", 60, 60, frames=500, taken=40, rows=90, least_rows=80, sound_seconds=1.0),
    ]
    found = size_in_headers(surveys, mel_rate=100.0, most_rows=1000)
    assert found == DecodedMedia(visual_rows=89, mel_frames=108, audio_rows=14, pixels=60 * 60 * 8)
