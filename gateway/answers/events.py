"""Turns the messages of one answer into server-sent events, in order."""

from __future__ import annotations

from collections.abc import Callable

from gateway.answers.audio_formats import ThreadedEncoder
from gateway.answers.collector import Body
from gateway.api.responses import AnswerFormat, Speech
from gateway.http import sse
from stages.messages import AudioDelta, AudioDone, TextDelta, TextDone


class EventWriter:
    """Writes one streamed answer.

    Args:
        answer_format: Builds the chunks.
        encoder: Encodes the speech; None for an answer without speech.
        keep: Keeps the transcript of a complete spoken answer; returns the time until which it is kept.
    """

    def __init__(
        self, answer_format: AnswerFormat, encoder: ThreadedEncoder | None, keep: Callable[[str], int]
    ) -> None:
        self._format = answer_format
        self._encoder = encoder
        self._keep = keep
        self._text: list[str] = []
        self._text_done: TextDone | None = None
        self._audio_done: AudioDone | None = None
        self._uncounted = 0  # PCM frames that the encoder has received but no event has counted yet

    def opening(self) -> bytes:
        """The first event, which gives the role."""
        return sse.event(self._format.opening())

    async def events(self, bodies: list[Body]) -> bytes:
        """The events for `bodies`. A message that produces no output yet gets no event."""
        return b"".join([await self._event(body) for body in bodies])

    @property
    def complete(self) -> bool:
        """Whether all parts of the answer are complete."""
        return self._text_done is not None and (self._encoder is None or self._audio_done is not None)

    async def closing(self) -> bytes:
        """The events after the last message of a complete answer: end of speech, finish reason, usage, and `DONE`."""
        assert self._text_done is not None
        chunks = []
        if self._encoder is not None and self._audio_done is not None:
            data = await self._encoder.finish()
            transcript = "".join(self._text)
            speech = Speech(data, self._audio_done, self._keep(transcript))
            chunks.append(self._format.last_audio(speech, self._uncounted, transcript))
        chunks += self._format.closing(self._text_done, self._audio_done)
        return b"".join([*map(sse.event, chunks), sse.DONE])

    async def _event(self, body: Body) -> bytes:
        match body:
            case TextDelta():
                self._text.append(body.text)
                if body.text or body.logprobs or body.ids:
                    return sse.event(self._format.delta(body))
            case AudioDelta():
                return await self._sound(body)
            case TextDone():
                self._text_done = body
            case AudioDone():
                self._audio_done = body
        return b""

    async def _sound(self, delta: AudioDelta) -> bytes:
        assert self._encoder is not None
        data = await self._encoder.feed(delta.samples.numpy())
        self._uncounted += delta.samples.shape[0]
        if not data:
            return b""
        frames = self._uncounted - self._encoder.held
        self._uncounted = self._encoder.held
        return sse.event(self._format.audio(data, frames))
