"""Handles `POST /v1/audio/speech`: lets the model read a text aloud, and sends the sound while it is generated."""

from __future__ import annotations

import functools
from concurrent.futures import Executor

from aiohttp import web

from gateway.answers.audio_formats import ThreadedEncoder, stream_encoder
from gateway.answers.exchange import Exchanges, HttpExchange
from gateway.answers.sending import StreamWriter, send_stream
from gateway.answers.speech_streams import SoundWriter, SpeechEventWriter
from gateway.api.speech_request import SpokenText, read_speech_request
from gateway.api.speech_responses import MEDIA_TYPES
from gateway.api.voices import Voices


class SpeechReader:
    """The handler of requests to read a text aloud.

    Args:
        exchanges: Opens the exchange of each request.
        voices: Voices of the pipeline; None if the pipeline does not speak.
        audio_threads: Thread pool that encodes the speech of all answers.
    """

    def __init__(self, exchanges: Exchanges, *, voices: Voices | None, audio_threads: Executor) -> None:
        self._exchanges = exchanges
        self._voices = voices
        self._audio_threads = audio_threads

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Answer one request.

        A request goes through the same steps as a streamed chat completion, and can end in the same ways; see
        `answers.chat`. There are two differences. Each chunk of sound that arrives moves the deadline later by the
        length of the chunk. If the response body is the sound itself, an error after the headers have been sent closes
        the connection, because the body cannot express an error.
        """
        async with self._exchanges.open(request) as exchange:
            wanted = await self._understand(exchange)
            exchange.progress.streamed = True
            writer = self._writer(wanted)
            answer = await exchange.submit(exchange.new_id("speech-"), wanted.request)
            del wanted  # from now on the pipeline holds the text
            async with answer:
                return await send_stream(exchange, answer, writer)

    async def _understand(self, exchange: HttpExchange) -> SpokenText:
        """Read and check the body."""
        read = functools.partial(read_speech_request, voices=self._voices, limits=exchange.limits)
        return await exchange.read_json(read)

    def _writer(self, wanted: SpokenText) -> StreamWriter:
        make = functools.partial(stream_encoder, wanted.audio_format, one_file=True)
        encoder = ThreadedEncoder(make, self._audio_threads)
        return SpeechEventWriter(encoder) if wanted.events else SoundWriter(encoder, MEDIA_TYPES[wanted.audio_format])
