"""Derives from the graph which stages a request needs. So the loss of a worker ends only the requests that still need
the worker's stages.
"""

from __future__ import annotations

from typing import Any, get_args

from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.contract.route import AnswerStream, Route
from stages import messages
from stages.messages import ChatRequest, Modality
from stages.topology import QWEN3_OMNI


def _end(body: type[Any]) -> str:
    """The stage that sends messages with a `body` of this type to the collector."""
    [stage] = [edge.source for edge in QWEN3_OMNI.edges if edge.target == COLLECTOR and body in get_args(edge.body)]
    return stage


def _taker(body: type[Any]) -> str:
    """The stage that receives messages with a `body` of this type."""
    [stage] = [edge.target for edge in QWEN3_OMNI.edges if edge.body is body]
    return stage


TEXT, SPEECH = _end(messages.TextDelta), _end(messages.AudioDelta)
"""The stages that send the two parts of an answer to the collector."""

_ENCODERS: dict[Modality, str] = {
    "image": _taker(messages.VisionWork),
    "video": _taker(messages.VisionWork),
    "audio": _taker(messages.AudioWork),
}
_WRITING = frozenset({TEXT, *(edge.source for edge in QWEN3_OMNI.edges if edge.target == TEXT)})
_SPEAKING = frozenset(QWEN3_OMNI.stage_names) - QWEN3_OMNI.text_stages
_PREPARING = QWEN3_OMNI.text_stages - _WRITING - frozenset(_ENCODERS.values())


def route(request: ChatRequest) -> Route:
    """The stages of the graph that `request` passes through."""
    encoders = {_ENCODERS[media.kind] for media in request.media}
    if any(media.kind == "video" and (media.video or request.video).use_audio for media in request.media):
        encoders.add(_ENCODERS["audio"])
    outputs = {TEXT: AnswerStream(_WRITING)}
    if request.speech is not None:
        # The thinker sends the last token to the talker and to decode at the same time. After the stream to the talker
        # has begun, the talker's worker itself notices if the stream breaks off. The first sound shows that the stream
        # has begun. At a stop string, decode ends the text first, and then only the thinker can send the end to the
        # talker.
        speech = AnswerStream(_SPEAKING | _WRITING) if request.text.stop else AnswerStream(_SPEAKING, first=_WRITING)
        outputs[SPEECH] = speech
    return Route(before=_PREPARING | encoders, outputs=outputs)
