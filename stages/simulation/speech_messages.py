"""The messages of the simulated stages. Advice (see `wire.messages.Advice`) has the types of the real stages: `Playing`
and `TextPace`.
"""

from __future__ import annotations

from msgspec import Struct

from omni_pipeline.contract.simulation import SimulatedRequest
from stages.messages import Playing


class TextTokens(Struct, frozen=True):
    """New tokens of a text."""

    tokens: int


class TextEnd(Struct, frozen=True):
    """The end of a text."""


class UtteranceStart(Struct, frozen=True):
    """The beginning of an utterance."""

    request: SimulatedRequest


class FrameSeed(Struct, frozen=True):
    """Codebook 0 of a frame."""


class FrameFeedback(Struct, frozen=True):
    """The frame is complete."""


class Frame(Struct, frozen=True):
    """A whole frame, for the vocoder."""


class UtteranceEnd(Struct, frozen=True):
    """No frame of the utterance will follow."""


class VocoderAdvice(Struct, frozen=True):
    """Advice from one replica of the vocoder: the state of the players that play this replica's utterances."""

    replica: int
    playing: Playing
