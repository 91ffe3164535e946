"""Which stages a request needs, so that a lost worker ends only the requests it could still matter to."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from stages.messages import ChatRequest, Modality


class Route(Struct, frozen=True):
    """The stages of one request.

    Attributes:
        before: Needed until the first message of the answer has come.
        outputs: Stages that each send one stream to the collector, with the stages that are needed until that stream
            has ended. The answer is complete when all have.
    """

    before: frozenset[str]
    outputs: Mapping[str, frozenset[str]]

    @property
    def all(self) -> frozenset[str]:
        """Every stage it goes through."""
        return self.before.union(*self.outputs.values())


_WRITING = frozenset({"thinker", "decode"})
_SPEAKING = frozenset({"talker_ar", "code_predictor", "code2wav"})
_PREPARING = frozenset({"preprocessing", "mm_aggregate"})
_ENCODERS: dict[Modality, str] = {"image": "image_encoder", "video": "image_encoder", "audio": "audio_encoder"}


def route(request: ChatRequest) -> Route:
    """The stages that `request` takes through the graph."""
    encoders = {_ENCODERS[media.kind] for media in request.media}
    if request.video.use_audio and any(media.kind == "video" for media in request.media):
        encoders.add(_ENCODERS["audio"])
    outputs = {"decode": _WRITING}
    if request.speech is not None:
        # The thinker tells the talker and decode of the last token at once. At a stop string it is otherwise: decode
        # has ended the text before the thinker, and through it the talker, knows.
        outputs["code2wav"] = _SPEAKING | _WRITING if request.text.stop else _SPEAKING
    return Route(before=_PREPARING | encoders, outputs=outputs)
