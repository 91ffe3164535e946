"""Collects the text of a recording from the messages of its pieces, and writes it as server-sent events."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET, structs

from gateway.answers.collector import Body
from gateway.api.responses import error_body
from gateway.api.transcription.responses import (
    PieceText,
    TranscriptDelta,
    TranscriptDone,
    logprobs,
    separator,
    transcript,
)
from gateway.http import sse
from omni_pipeline.errors import ErrorInfo
from stages.messages import FinishReason, RecordingCut, TextDelta, TextDone


class TranscriptText:
    """The part of a recording's text that has arrived.

    Attributes:
        cut: The pieces of the recording; None until they are known.
        pieces: The texts of the pieces that are complete, in order.
    """

    def __init__(self) -> None:
        self.cut: RecordingCut | None = None
        self.pieces: list[PieceText] = []
        self._deltas: list[TextDelta] = []
        self._separator = ""
        self._begun = False  # whether the current piece has text
        self._end = ""  # the last character of the text so far

    def add(self, body: Body) -> TextDelta | None:
        """Add the next message. Returns the text that the message adds, including the space between two pieces. Returns
        None for a message without text.
        """
        match body:
            case RecordingCut():
                self.cut = body
            case TextDelta():
                return self._add(body)
            case TextDone():
                reason: FinishReason = "length" if body.finish_reason == "length" else "stop"
                self.pieces.append(PieceText(self._separator, self._deltas, reason, body.usage))
                self._deltas, self._separator, self._begun = [], "", False
        return None

    @property
    def complete(self) -> bool:
        """Whether all pieces are complete."""
        return self.cut is not None and len(self.pieces) == len(self.cut.ends)

    def _add(self, delta: TextDelta) -> TextDelta:
        self._deltas.append(delta)
        if not delta.text:
            return delta
        if not self._begun:
            self._begun = True
            self._separator = separator(self._end, delta.text[0])
            self._end = delta.text[-1]
            return structs.replace(delta, text=self._separator + delta.text)
        self._end = delta.text[-1]
        return delta


class TranscriptEvents:
    """Writes a text as server-sent events, while it is generated.

    Args:
        with_logprobs: Whether log-probabilities were asked for.
    """

    headers: Mapping[str, str] = sse.HEADERS
    keep_alive = sse.KEEP_ALIVE

    def __init__(self, *, with_logprobs: bool) -> None:
        self._text = TranscriptText()
        self._with_logprobs = with_logprobs

    def opening(self) -> bytes:
        """Empty, because the first event has text."""
        return b""

    async def events(self, bodies: list[Body]) -> bytes:
        """The events for `bodies`."""
        added = [delta for body in bodies if (delta := self._text.add(body)) is not None]
        return b"".join(self._event(delta) for delta in added if delta.text or (self._with_logprobs and delta.logprobs))

    @property
    def complete(self) -> bool:
        """Whether all pieces are complete."""
        return self._text.complete

    async def closing(self) -> bytes:
        """The event with the whole text, and `DONE`."""
        whole = transcript(self._text.pieces, with_logprobs=self._with_logprobs)
        done = TranscriptDone(whole.text, whole.usage, whole.finish_reason, whole.logprobs)
        return sse.event(done) + sse.DONE

    def failure(self, info: ErrorInfo) -> bytes:
        """The event of an error, which ends the stream without `DONE`."""
        return sse.event(error_body(info))

    def _event(self, delta: TextDelta) -> bytes:
        return sse.event(TranscriptDelta(delta.text, logprobs([delta]) if self._with_logprobs else UNSET))
