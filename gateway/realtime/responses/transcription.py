"""Transcribes the user's speech in one session, if the session asks for transcripts. One sound is transcribed at a
time, and only while no response is generated. So the transcription does not delay responses.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from msgspec import Struct

from gateway.answers.exchange import Exchanges, Sender
from gateway.answers.sending import unfinished
from gateway.answers.transcript_text import TranscriptText
from gateway.answers.transcripts import Task, pieces_of
from gateway.api.sampling import thinker_sampling
from gateway.api.schema import ChatCompletionRequest
from gateway.api.transcription.responses import whole_text
from gateway.realtime.items.conversation import SoundContent, new_id
from gateway.realtime.protocol.client_events import Transcription
from gateway.realtime.protocol.server_events import Event, event
from omni_pipeline.errors import ErrorInfo, OmniError, internal
from omni_pipeline.logs import fields
from stages.messages import Recording, TextOutput

log = logging.getLogger(__name__)

# Time to wait before the transcription of a committed sound begins. If the client asks for a response in this time, the
# response is generated before the transcription.
_COURTESY_SECONDS = 0.1
# Largest number of sounds that wait. Further sounds get a `.failed` event.
_MOST_WAITING = 64

_DELTA = "conversation.item.input_audio_transcription.delta"
_COMPLETED = "conversation.item.input_audio_transcription.completed"
_FAILED = "conversation.item.input_audio_transcription.failed"


class _Job(Struct, frozen=True):
    """One sound to transcribe."""

    item_id: str
    content: SoundContent
    options: Transcription


class Transcriber:
    """Transcribes the sounds of one session.

    Args:
        exchanges: Admits each sound as a request.
        sender: Describes the session as the sender of a request.
        quiet: Waits until no response is generated.
        put: Sends an event.
    """

    def __init__(
        self,
        exchanges: Exchanges,
        sender: Callable[[str], Sender],
        quiet: Callable[[], Awaitable[object]],
        put: Callable[[Event], None],
    ) -> None:
        self._exchanges = exchanges
        self._sender = sender
        self._quiet = quiet
        self._put = put
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue(_MOST_WAITING)
        self._work: asyncio.Task[None] | None = None
        self._current: asyncio.Task[None] | None = None

    def add(self, item_id: str, content: SoundContent, options: Transcription) -> None:
        """Transcribe the sound of an item as soon as no response is generated."""
        try:
            self._jobs.put_nowait(_Job(item_id, content, options))
        except asyncio.QueueFull:
            busy = internal(
                "Too many audio items of this session are waiting to be transcribed.", code="too_many_transcriptions"
            )
            self._fail(item_id, busy.info)
            return
        if self._work is None:
            self._work = asyncio.create_task(self._run())

    def make_way(self) -> None:
        """Stop because a response begins. After the response, the transcription of the current sound begins again."""
        if self._current is not None:
            self._current.cancel()

    async def close(self) -> None:
        """Stop all transcription. No sound can be added afterwards."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])

    async def _run(self) -> None:
        while True:
            job = await self._jobs.get()
            while True:
                await asyncio.sleep(_COURTESY_SECONDS)
                await self._quiet()
                self._current = asyncio.create_task(self._write_down(job))
                try:
                    await asyncio.wait([self._current])
                finally:
                    stopped = not self._current.done() or self._current.cancelled()
                    self._current.cancel()
                    self._current = None
                if not stopped:
                    break

    async def _write_down(self, job: _Job) -> None:
        request_id = new_id("transcript")
        sender = self._sender(request_id)
        try:
            async with self._exchanges.open_for(sender) as exchange:
                text = TranscriptText()
                task = self._task(job)
                exchange.place.hold(task.recording.sound.nbytes)
                async with pieces_of(exchange, request_id, task) as answer:
                    while bodies := await answer.take():
                        exchange.place.free()
                        exchange.progress.saw(bodies)
                        for body in bodies:
                            text.add(body)
                if not text.complete:
                    raise unfinished()
                exchange.progress.outcome = "ok"
            self._complete(job, whole_text(text.pieces))
        except OmniError as error:
            self._fail(job.item_id, error.info)
        except Exception:
            log.exception("unexpected error", extra=fields(request_id=request_id))
            self._fail(job.item_id, internal("Something went wrong inside the server.").info)

    def _task(self, job: _Job) -> Task:
        options, limits = job.options, self._exchanges.limits
        language, prompt = options.language or None, options.prompt or ""
        recording = Recording(job.content.medium, "transcribe", language, context=prompt)
        return Task(recording, thinker_sampling(ChatCompletionRequest(messages=[]), limits), TextOutput(stream=False))

    def _complete(self, job: _Job, transcript: str) -> None:
        job.content.transcript = transcript
        place = {"item_id": job.item_id, "content_index": 0}
        if transcript:
            self._put(event(_DELTA, **place, delta=transcript))
        usage = {"type": "duration", "seconds": round(job.content.seconds, 3)}
        self._put(event(_COMPLETED, **place, transcript=transcript, usage=usage))

    def _fail(self, item_id: str, info: ErrorInfo) -> None:
        error = {"type": info.type, "code": info.code, "message": info.message, "param": info.param}
        self._put(event(_FAILED, item_id=item_id, content_index=0, error=error))
