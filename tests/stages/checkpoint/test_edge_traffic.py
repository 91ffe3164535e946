"""The computed bytes of messages between stages agree with encoded messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.contract.stage_memory import Request, Situation
from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.messages import Chunk
from omni_pipeline.wire.tensor import Tensor
from stages import messages
from stages.checkpoint.memory_needs import FRAMES_PER_TOKEN
from stages.topology import QWEN3_OMNI

RELEASED = Path(__file__).parents[2] / "data" / "qwen3_omni_30b"
ROWS, TOKENS = 1300, 40  # a prompt of 100 seconds of sound; the second number is the length of the answer
FRAMES = FRAMES_PER_TOKEN * TOKENS
HIDDEN = 2048
KEY = b"k" * 32
SAMPLING = messages.Sampling()
SPEECH = messages.SpeechOptions("ethan", SAMPLING, SAMPLING)


def zeros(*shape: int, dtype: str = "float32") -> Tensor:
    """An array; bfloat16, which numpy lacks, has the size of int16."""
    return Tensor.of(np.zeros(shape, dtype))


def rows(count: int = ROWS) -> Tensor:
    return zeros(count, dtype="int64")


def span(kind: messages.Modality) -> messages.MediaSpan:
    return messages.MediaSpan(kind, KEY, rows())


def tokens() -> list[Any]:
    return [messages.Tokens([150000]) for _ in range(TOKENS)]


def request(*, media: bool) -> messages.ThinkerRequest:
    return messages.ThinkerRequest(
        ids=rows(),
        cache_ids=rows(),
        positions=zeros(3, ROWS) if media else None,
        position_delta=0.0,
        media_rows=rows() if media else None,
        media_embeds=zeros(ROWS, HIDDEN) if media else None,
        visual_rows=rows() if media else None,
        deepstack=zeros(3, ROWS, HIDDEN) if media else None,
        media_tokens={"image": ROWS} if media else {},
        thinker=SAMPLING,
        text=messages.TextOutput(),
    )


def prompt(*, media: bool) -> messages.Prompt:
    positions = zeros(3, ROWS) if media else None
    vision = [span("image")] if media else []
    return messages.Prompt(rows(), positions, 0.0, vision, [], SAMPLING, messages.TextOutput())


def spoken(*, media: bool) -> messages.TalkerPrompt:
    return messages.TalkerPrompt(
        ids=rows(),
        media_rows=rows() if media else None,
        media_hidden=zeros(ROWS, HIDDEN, dtype="int16") if media else None,
        assistant_ids=[1, 2, 3],
        positions=zeros(3, ROWS) if media else None,
        position_delta=0.0,
        speech=SPEECH,
    )


Sent = Callable[[bool], Sequence[Any]]
EDGES: dict[tuple[str, str], Sent] = {
    ("preprocessing", "image_encoder"): lambda media: (
        [messages.VisionWork([messages.VisionItem(KEY, (1, 52, 100), zeros(4 * ROWS, 1536))])] if media else []
    ),
    ("preprocessing", "audio_encoder"): lambda media: (
        [messages.AudioWork([messages.AudioItem(KEY, zeros(128, 10000))], 100)] if media else []
    ),
    ("preprocessing", "mm_aggregate"): lambda media: [prompt(media=media)],
    ("image_encoder", "mm_aggregate"): lambda media: (
        [messages.VisionRows([zeros(ROWS, HIDDEN)], [zeros(3, ROWS, HIDDEN)])] if media else []
    ),
    ("audio_encoder", "mm_aggregate"): lambda media: [messages.AudioRows([zeros(ROWS, HIDDEN)])] if media else [],
    ("mm_aggregate", "thinker"): lambda media: [request(media=media)],
    ("thinker", "decode"): lambda media: [
        messages.DecodeStart(ROWS, 0, {}, messages.TextOutput()),
        *tokens(),
        messages.Finished("stop", 1),
    ],
    ("decode", "thinker"): lambda media: [messages.StopGenerating(TOKENS)],
    ("decode", COLLECTOR): lambda media: [
        *(messages.TextDelta(" tomorrow") for _ in range(TOKENS)),
        messages.TextDone("stop", messages.TokenUsage(ROWS, TOKENS, 0, {})),
    ],
    ("thinker", "talker_ar"): lambda media: [spoken(media=media), *tokens(), messages.Finished("stop", 1)],
    ("preprocessing", "talker_ar"): lambda media: [spoken(media=False), messages.Passage([150000] * TOKENS)],
    ("code_predictor", "code2wav"): lambda media: [messages.Frame(zeros(16, dtype="int64")) for _ in range(FRAMES)],
    ("code2wav", COLLECTOR): lambda media: [messages.AudioDelta(zeros(1920)) for _ in range(FRAMES)],
}


@pytest.mark.parametrize("media", [False, True], ids=["text", "media"])
@pytest.mark.parametrize("ends", EDGES, ids=" ".join)
def test_the_bytes_are_those_of_the_messages(ends: tuple[str, str], media: bool) -> None:
    edge = next(edge for edge in QWEN3_OMNI.edges if (edge.source, edge.target) == ends)
    assert edge.traffic is not None
    situation = Situation(
        config=json.loads((RELEASED / "config.json").read_text()),
        options=None,
        device="cuda",
        item_size=2,
        ranks=1,
        device_memory=0,
        stages=frozenset(QWEN3_OMNI.stage_names),
        request=Request(ROWS, TOKENS),
    )
    told = edge.traffic(situation)
    codec, bodies = Codec(QWEN3_OMNI.body_types()), EDGES[ends](media)
    encoded = [codec.encode(Chunk("chatcmpl-" + 32 * "0", *ends, body, seq)) for seq, body in enumerate(bodies)]
    sent = sum(memoryview(frame).nbytes for frames in encoded for frame in frames)
    computed = told.media if media else told.text
    if ends == ("preprocessing", "talker_ar"):
        sent -= 8 * ROWS  # the prompt of a text that is read aloud is short
    assert sent <= computed + 1000, "long options of a request are not counted"
    assert computed <= 1.5 * sent + 1000


def test_an_edge_without_a_number_is_on_one_host_or_carries_what_the_client_sends() -> None:
    unknown = {(edge.source, edge.target) for edge in QWEN3_OMNI.edges if edge.traffic is None}
    assert unknown == {
        ("gateway", "preprocessing"),  # the files of the client
        ("preprocessing", COLLECTOR),  # one small message for a recording
        ("talker_ar", "code_predictor"),  # these two stages are always on the same host
        ("code_predictor", "talker_ar"),
    }
