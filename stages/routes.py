"""Derives from the graph which stages a request needs, and for how long. So when a worker is lost, only the requests
that still need the worker's stages fail.
"""

from __future__ import annotations

from typing import Any, get_args

from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.contract.route import AnswerStream, Route
from stages import messages
from stages.messages import ChatRequest, EntryRequest, Modality, PieceRequest, Recording, SpeechRequest
from stages.topology import QWEN3_OMNI


def _end(body: type[Any]) -> str:
    """The stage that sends messages with a `body` of this type to the collector."""
    to_collector = [edge for edge in QWEN3_OMNI.edges if edge.target == COLLECTOR]
    [stage] = [edge.source for edge in to_collector if edge.body is body or body in get_args(edge.body)]
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
_CUTTING = _end(messages.RecordingCut)

TRANSCRIPT = Route(_PREPARING | {_ENCODERS["audio"]}, {TEXT: AnswerStream(_WRITING)})
"""The stages that each piece of a recording passes through. The stage `preprocessing` also keeps the recording."""


def route(request: EntryRequest) -> Route:
    """The stages of the graph that `request` passes through."""
    match request:
        case ChatRequest():
            return _chat(request)
        case SpeechRequest():
            return _reading()
        case Recording():
            return Route(frozenset(), {_CUTTING: AnswerStream(frozenset({_CUTTING}))})
        case PieceRequest():
            return TRANSCRIPT


def _reading() -> Route:
    """The route of a text that is read aloud. The entry stage sends the text to the talker.

    The route needs the entry stage only until the first sound has arrived. By then, the entry stage's stream to the
    talker has begun, and the talker's worker notices if this stream breaks off.
    """
    return Route(before=frozenset(), outputs={SPEECH: AnswerStream(_SPEAKING, first=frozenset({QWEN3_OMNI.entry}))})


def _chat(request: ChatRequest) -> Route:
    encoders = {_ENCODERS[media.kind] for media in request.media}
    if any(media.kind == "video" and (media.video or request.video).use_audio for media in request.media):
        encoders.add(_ENCODERS["audio"])
    outputs = {TEXT: AnswerStream(_WRITING)}
    if request.speech is not None:
        # When the first sound has arrived, the thinker's stream to the talker has begun. After that, the talker's
        # worker notices if the stream breaks off. The thinker sends the end of the text to the talker and to the stage
        # `decode` at the same time. But if the stage `decode` decides which tokens are spoken, the talker receives the
        # last tokens only after `decode` has processed them.
        judged = bool(request.text.stop) or request.tools is not None
        speech = AnswerStream(_SPEAKING | _WRITING) if judged else AnswerStream(_SPEAKING, first=_WRITING)
        outputs[SPEECH] = speech
    return Route(before=_PREPARING | encoders, outputs=outputs)
