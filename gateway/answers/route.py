"""Which stages a request needs, so that a lost worker ends only the requests it could still matter to."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from stages.messages import ChatRequest, Modality


class Output(Struct, frozen=True):
    """One of the streams that make up an answer.

    Attributes:
        stages: Needed until it has ended.
        first: Needed, too, until its first message has come.
    """

    stages: frozenset[str]
    first: frozenset[str] = frozenset()


class Route(Struct, frozen=True):
    """The stages of one request.

    Attributes:
        before: Needed until the first message of the answer has come.
        outputs: The streams, by the stage that sends them to the collector. The answer is complete when all have ended.
    """

    before: frozenset[str]
    outputs: Mapping[str, Output]

    @property
    def all(self) -> frozenset[str]:
        """Every stage it goes through."""
        return self.before.union(*(output.stages | output.first for output in self.outputs.values()))


_WRITING = frozenset({"thinker", "decode"})
_SPEAKING = frozenset({"talker_ar", "code_predictor", "code2wav"})
_PREPARING = frozenset({"preprocessing", "mm_aggregate"})
_ENCODERS: dict[Modality, str] = {"image": "image_encoder", "video": "image_encoder", "audio": "audio_encoder"}


def route(request: ChatRequest) -> Route:
    """The stages that `request` takes through the graph."""
    encoders = {_ENCODERS[media.kind] for media in request.media}
    if request.video.use_audio and any(media.kind == "video" for media in request.media):
        encoders.add(_ENCODERS["audio"])
    outputs = {"decode": Output(_WRITING)}
    if request.speech is not None:
        # The thinker tells the talker and decode of the last token at once, and the talker's worker sees for itself
        # when a stream that has begun is broken off. Sound shows that it has begun. At a stop string it is otherwise:
        # decode has ended the text before the thinker, and through it the talker, knows.
        voice = Output(_SPEAKING | _WRITING) if request.text.stop else Output(_SPEAKING, first=_WRITING)
        outputs["code2wav"] = voice
    return Route(before=_PREPARING | encoders, outputs=outputs)
