"""Turns the messages of one answer into server-sent events, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gateway.answers.audio_formats import ThreadedEncoder
from gateway.answers.collector import Body
from gateway.api.responses import AnswerFormat, Speech, error_body, only_calls
from gateway.http import sse
from omni_pipeline.errors import ErrorInfo
from stages.messages import AudioDelta, AudioDone, TextDelta, TextDone


class EventWriter:
    """Writes one streamed answer.

    Args:
        answer_format: Builds the chunks.
        encoder: Encodes the speech; None for an answer without speech.
        keep: Keeps the transcript of a complete spoken answer. Returns the time until which the transcript is kept.
        choices: Number of texts of the answer.
    """

    headers: Mapping[str, str] = sse.HEADERS
    keep_alive = sse.KEEP_ALIVE

    def __init__(
        self,
        answer_format: AnswerFormat,
        encoder: ThreadedEncoder | None,
        keep: Callable[[str], int],
        choices: int,
    ) -> None:
        self._format = answer_format
        self._encoder = encoder
        self._keep = keep
        self._choices = choices
        self._spoken_text: list[str] = []
        self._called = False
        self._texts_done: list[TextDone] = []
        self._audio_done: AudioDone | None = None
        self._uncounted = 0  # number of PCM frames that the encoder has received, but that no event has reported

    def opening(self) -> bytes:
        """The first event of each choice, which contains the role."""
        return b"".join(sse.event(self._format.opening(choice)) for choice in range(self._choices))

    async def events(self, bodies: list[Body]) -> bytes:
        """The events for `bodies`. If a message produces no output yet, it gets no event."""
        return b"".join([await self._event(body) for body in bodies])

    @property
    def complete(self) -> bool:
        """Whether all parts of the answer are complete."""
        texts = len(self._texts_done) == self._choices
        return texts and (self._encoder is None or self._audio_done is not None)

    async def closing(self) -> bytes:
        """The events after the last message of a complete answer: the end of the speech, the finish reasons (only if
        the answer has speech), the usage, and `DONE`.
        """
        chunks = []
        if self._encoder is not None and self._audio_done is not None:
            data = await self._encoder.finish()
            transcript = "".join(self._spoken_text)
            if not only_calls(transcript, called=self._called, spoken=self._audio_done):
                speech = Speech(data, self._audio_done, self._keep(transcript))
                chunks.append(self._format.last_audio(speech, self._uncounted, transcript))
            chunks += [self._format.finish(done, self._audio_done) for done in self._texts_done]
        chunks += self._format.usage(self._texts_done, self._audio_done)
        return b"".join([*map(sse.event, chunks), sse.DONE])

    def failure(self, info: ErrorInfo) -> bytes:
        """The last event of a stream that has failed."""
        return sse.event(error_body(info))

    async def _event(self, body: Body) -> bytes:
        match body:
            case TextDelta():
                if self._encoder is not None:
                    self._spoken_text.append(body.text)
                self._called = self._called or bool(body.calls)
                if body.text or body.reasoning or body.logprobs or body.ids or body.calls:
                    return b"".join(map(sse.event, self._format.deltas(body)))
            case AudioDelta():
                return await self._sound(body)
            case TextDone():
                self._texts_done.append(body)
                if self._encoder is None:
                    return sse.event(self._format.finish(body, None))
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
