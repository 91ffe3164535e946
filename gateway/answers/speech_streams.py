"""Writes the body of the response to a text-to-speech request. The body is the sound itself, or a stream of
server-sent events that contain the sound.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

from gateway.answers.audio_formats import ThreadedEncoder
from gateway.answers.collector import Body
from gateway.api.responses import error_body
from gateway.api.speech_responses import SpeechAudioDelta, SpeechAudioDone, SpeechUsage
from gateway.http import sse
from omni_pipeline.errors import ErrorInfo
from stages.messages import AudioDelta, AudioDone


class _EncodedSound:
    """The sound of one answer while it arrives.

    Attributes:
        encoder: Encodes the sound.
        done: The last message, once it has arrived.
    """

    def __init__(self, encoder: ThreadedEncoder) -> None:
        self.encoder = encoder
        self.done: AudioDone | None = None

    async def encode(self, bodies: list[Body]) -> bytes:
        """The encoded sound of `bodies`."""
        data = bytearray()
        for body in bodies:
            if isinstance(body, AudioDelta):
                data += await self.encoder.feed(body.samples.numpy())
            elif isinstance(body, AudioDone):
                self.done = body
        return bytes(data)


class SoundWriter:
    """Writes only the encoded sound. So the response body cannot express an error.

    Args:
        encoder: Encodes the sound.
        media_type: Media type of the encoded sound.
    """

    keep_alive = b""

    def __init__(self, encoder: ThreadedEncoder, media_type: str) -> None:
        self.headers: Mapping[str, str] = sse.HEADERS | {"Content-Type": media_type}
        self._sound = _EncodedSound(encoder)

    def opening(self) -> bytes:
        """Empty, because the encoder writes the head of the file with the first sound."""
        return b""

    async def events(self, bodies: list[Body]) -> bytes:
        """The encoded sound of `bodies`."""
        return await self._sound.encode(bodies)

    @property
    def complete(self) -> bool:
        """Whether all sound has arrived."""
        return self._sound.done is not None

    async def closing(self) -> bytes:
        """The end of the file."""
        return await self._sound.encoder.finish()

    def failure(self, info: ErrorInfo) -> None:
        """Returns None, because the response body cannot express an error. The connection is then closed."""
        return


class SpeechEventWriter:
    """Writes the sound as OpenAI's events ``speech.audio.delta``, and then ``speech.audio.done``.

    Args:
        encoder: Encodes the sound.
    """

    headers: Mapping[str, str] = sse.HEADERS
    keep_alive = sse.KEEP_ALIVE

    def __init__(self, encoder: ThreadedEncoder) -> None:
        self._sound = _EncodedSound(encoder)

    def opening(self) -> bytes:
        """Empty, because there is no event before the first sound."""
        return b""

    async def events(self, bodies: list[Body]) -> bytes:
        """One event with all the sound of `bodies`; empty if `bodies` contain no sound."""
        return _delta(await self._sound.encode(bodies))

    @property
    def complete(self) -> bool:
        """Whether all sound has arrived."""
        return self._sound.done is not None

    async def closing(self) -> bytes:
        """The end of the file, and the event with the usage."""
        done = self._sound.done
        assert done is not None
        read, frames = done.text_tokens, done.frames
        usage = SpeechUsage(input_tokens=read, output_tokens=frames, total_tokens=read + frames)
        return _delta(await self._sound.encoder.finish()) + sse.event(SpeechAudioDone(usage))

    def failure(self, info: ErrorInfo) -> bytes:
        """The last event of a stream that has failed."""
        return sse.event(error_body(info))


def _delta(data: bytes) -> bytes:
    return sse.event(SpeechAudioDelta(base64.b64encode(data).decode())) if data else b""
