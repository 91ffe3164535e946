"""Which stages a request needs, so that a lost worker ends only the requests it could still matter to."""

from __future__ import annotations

from msgspec import Struct

from stages.messages import ChatRequest, Modality


class Route(Struct, frozen=True):
    """The stages of one request.

    Attributes:
        before: Needed until the first message of the answer has come.
        after: Needed from then to the end.
        outputs: Stages that each send one stream to the collector; the answer is complete when all have ended.
    """

    before: frozenset[str]
    after: frozenset[str]
    outputs: frozenset[str]


_ANSWERING = frozenset({"thinker", "decode"})
_ALWAYS = _ANSWERING | {"preprocessing", "mm_aggregate"}
_ENCODERS: dict[Modality, str] = {"image": "image_encoder", "video": "image_encoder", "audio": "audio_encoder"}


def route(request: ChatRequest) -> Route:
    """The stages that `request` takes through the text graph."""
    encoders = {_ENCODERS[media.kind] for media in request.media}
    if request.video.use_audio and any(media.kind == "video" for media in request.media):
        encoders.add(_ENCODERS["audio"])
    return Route(before=_ALWAYS | encoders, after=_ANSWERING, outputs=frozenset({"decode"}))
