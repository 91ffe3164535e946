"""Handles `POST /v1/chat/completions`, from the HTTP request to its answer, which is a single response or a stream."""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

from aiohttp import web
from msgspec import Struct

from gateway.admission import Admission, Place
from gateway.answers.audio_formats import ThreadedEncoder, file_encoder, stream_encoder
from gateway.answers.collector import Answer, Body, Collector
from gateway.answers.events import EventWriter
from gateway.answers.progress import RequestProgress
from gateway.answers.spoken_history import SpokenHistory, restore_transcripts
from gateway.api.conversion import MediaSource, convert
from gateway.api.responses import AnswerFormat, Speech, error_body
from gateway.api.schema import AudioFormat, ChatCompletionRequest
from gateway.api.validation import parse
from gateway.api.voices import Voices
from gateway.bodies.json_body import JsonBody
from gateway.bodies.reader import JsonBodyReader
from gateway.http import sse
from gateway.http.connections import GRACE_SECONDS
from gateway.http.middleware import CLIENT, NOTES, REQUEST_ID, json_response
from gateway.media.loading import MediaLoader
from gateway.metrics import Metrics
from gateway.traces.timeline import Timeline
from gateway.traces.traces import Traces
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import OmniError, bad_request, internal
from stages.messages import AudioDelta, AudioDone, ChatRequest, TextDelta, TextDone
from stages.routes import route

# Number of threads that encode speech. One thread encodes a hundred times faster than real time, so a few threads are
# enough.
AUDIO_THREADS = 2


class Manner(Struct, frozen=True):
    """The way in which the client wants its answer. The handler keeps a `Manner` instead of the parsed body, which may
    be large.

    Attributes:
        stream: Whether to send the answer as server-sent events.
        with_usage: Whether to send a last event that counts tokens.
        with_content: Whether to send the text as `content`, not only as the transcript of the speech.
        audio_format: Format of the speech; None for an answer without speech.
        one_file: Whether all chunks of streamed speech together are one file, whatever the format.
    """

    stream: bool
    with_usage: bool
    with_content: bool
    audio_format: AudioFormat | None
    one_file: bool


def manner_of(request: ChatCompletionRequest) -> Manner:
    modalities = request.modalities or ["text"]
    audio_format = None
    if "audio" in modalities:
        named = (request.audio and request.audio.format) or "wav"
        audio_format = "pcm16" if named == "pcm" else named
    return Manner(
        stream=bool(request.stream),
        with_usage=bool(request.stream_options and request.stream_options.include_usage),
        with_content="text" in modalities,
        audio_format=audio_format,
        one_file=bool(request.audio and request.audio.chunks == "one_file"),
    )


class _Interpretation(Struct, frozen=True):
    """What a body asks for.

    Attributes:
        chat: The request without its media.
        sources: The sources of the media.
        manner: The manner of the answer.
        restored_bytes: Size of the transcripts that the body named by ids.
    """

    chat: ChatRequest
    sources: list[MediaSource]
    manner: Manner
    restored_bytes: int


class ChatCompletions:
    """The handler of chat completions.

    Args:
        admission: Admits requests.
        model: Name of the model in the answers.
        voices: Voices of the pipeline; None if it does not speak.
        limits: Bounds on load.
        traces: Records the timeline of each request.
        history: The transcripts of spoken answers that a request may name by their ids.

    Attributes:
        audio_threads: Thread pool that encodes the speech of all answers. `Gateway` shuts it down.
    """

    def __init__(
        self,
        collector: Collector,
        loader: MediaLoader,
        metrics: Metrics,
        admission: Admission,
        *,
        model: str,
        voices: Voices | None,
        limits: Limits,
        traces: Traces,
        history: SpokenHistory,
    ) -> None:
        self._collector = collector
        self._loader = loader
        self._metrics = metrics
        self._model = model
        self._voices = voices
        self._limits = limits
        self._traces = traces
        self._history = history
        self._admission = admission
        self.audio_threads = ThreadPoolExecutor(AUDIO_THREADS, thread_name_prefix="audio")

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Answer one request.

        The steps of a request, each with the module that does it. The modules are in `gateway`, unless the name begins
        with another package:

        1. `http.connections` reads the head of the request. `http.middleware` gives the request an id and checks the
           API key. `serving.app` routes the request to this method.
        2. `traces.traces` begins a timeline, and `answers.progress` begins to measure.
        3. `admission` lets the request in, or makes it wait for its turn. The deadline of the request is
           `limits.request_seconds` after the request came.
        4. `_body` reads the body, within `limits.receive_seconds`. `bodies.reader` bounds its structure and its text,
           and keeps long strings apart. `admission` counts the bytes of body and media.
        5. `api.validation` decodes and checks the body. `answers.spoken_history` looks up the transcripts of earlier
           spoken answers that the body names by their ids. `api.conversion` turns the result into a `ChatRequest`, with
           the help of `api.sampling`, `api.lengths` and `api.voices`.
        6. `media.loading` reads the media from the body, or calls `media.remote` or `media.local_files` for them.
        7. `stages.routes` names the stages that the request needs. `admission` counts the request in each of them.
        8. `answers.collector` waits while any of these stages is being restarted. Then it hands the request to
           `omni_pipeline.supervision.pipeline`, which sends it to the entry stage.
        9. The stages compute the answer. `answers.collector` receives their messages, checks that no message is
           missing, and keeps them until this method reads them. A stage that decodes media first waits until
           `grants` has granted the memory. When the first message comes, `admission` stops counting the bytes.
        10. The messages become the response. For a whole answer, `_whole` joins the messages, and `api.responses` makes
            one JSON body. For a streamed answer, `answers.events` turns the messages into chunks of `api.responses`,
            and `http.sse` frames the chunks. In both cases, `answers.audio_formats` encodes the speech in threads, and
            `answers.spoken_history` keeps the transcript when the answer is complete.
        11. When the request ends, with or without an error, the steps are undone in reverse order. `answers.collector`
            closes the answer; if the answer was not complete, the request is aborted in its workers. `admission` lets
            the next request in, once the workers hold nothing of this one. `answers.progress` counts the outcome.
            `traces.traces` ends the timeline. `http.middleware` turns an error into a response and writes the log line.

        A request can end in the following ways. The outcome that metrics and log show is in parentheses:

        - Answered whole (``ok``): 200 with one JSON body.
        - Streamed (``ok``): 200 with events, of which the last is ``[DONE]``.
        - Refused (``refused``): 4xx. Steps 3 to 7 refuse a request that is wrong, too large or forbidden, or for which
          the server has no room now (429). A stage refuses, for example, a damaged picture or a prompt that is too
          long. A request that step 1 refuses for its connection, key or path has no outcome: it never comes here.
        - Timed out while it waits for its turn (``refused``): 429 at the deadline.
        - Timed out while body or media arrive (``refused``): 408 if the body takes longer than
          `limits.receive_seconds`, or at the deadline; 400 if a download takes longer than `media.fetch_seconds`.
        - Timed out while a stage is restarted (``failed``): 503 after `limits.restart_seconds`, or at once if
          the restart is known to take longer.
        - Timed out before the answer was complete and sent (``failed``): 504 at the deadline, by `answers.collector`.
          If a whole answer is being sent, or the client does not read, the connection is cut off instead.
        - Client left (``cancelled``): aiohttp cancels this method, or a write raises ConnectionError. There is no
          response. Step 11 aborts the request in its workers.
        - Client reads too slowly (``failed``): 503 when more than `limits.reader_bytes` of the answer are unread.
        - Worker lost (``failed``): 503 from `answers.collector`, at once, if the request still needs a stage of that
          worker. All other requests go on.
        - Server stopping (``failed``): 503 for a request that comes or waits for its turn, and for a request in the
          pipeline that does not end within `server.drain_seconds`.
        - Bug (``failed``): 500, also for an unexpected error in a stage and for a missing message. If the engine of a
          language model fails a request: 503.

        Until the headers of a stream are sent, an error is a response with its own status. The headers are sent with
        the first message, or after `limits.keep_alive_seconds` without a message. From then on the status is 200, and
        the error is the last event, without ``[DONE]``. A client that does not read that event within `GRACE_SECONDS`
        is cut off. The request holds its place until the operating system has taken the last byte of the answer.
        """
        deadline = asyncio.get_running_loop().time() + self._limits.request_seconds
        with self._watched(request) as progress:
            async with self._admission.admit(request[CLIENT], deadline) as place:
                progress.timeline.until_now("wait for a place")
                chat, manner = await self._understand(request, place, deadline, progress.timeline)
                place.arrived()
                progress.streamed = manner.stream
                answer_id = f"chatcmpl-{uuid.uuid4().hex}"
                request[NOTES]["answer_id"] = answer_id
                answer_format = AnswerFormat(
                    answer_id,
                    self._model,
                    audio_format=manner.audio_format,
                    with_content=manner.with_content,
                    with_logprobs=chat.text.logprobs,
                    with_ids=chat.text.return_token_ids,
                    with_usage=manner.with_usage,
                )
                encoder = self._encoder(manner)
                keep = functools.partial(self._history.keep, request[CLIENT], answer_format.audio_id)
                stages = route(chat)
                place.need(stages.all)
                progress.timeline.follow(answer_id)
                with progress.timeline.span("submit"):
                    await self._collector.ready(stages)
                    answer = self._collector.submit(answer_id, chat, stages, deadline=deadline, place=place)
                del chat  # from now on the pipeline holds the media
                async with answer:
                    if manner.stream:
                        writer = EventWriter(answer_format, encoder, keep)
                        return await self._stream(request, place, answer, writer, progress)
                    return await self._whole(request, place, answer, answer_format, encoder, keep, progress)

    @contextmanager
    def _watched(self, request: web.Request) -> Iterator[RequestProgress]:
        timeline = self._traces.begin(request.headers)
        if timeline.trace_id is not None:
            request[NOTES]["trace_id"] = timeline.trace_id
        progress = RequestProgress(self._metrics, timeline)
        with self._metrics.in_flight.track_inprogress():
            try:
                yield progress
            except OmniError as error:
                progress.failed(error.info)
                raise
            except (asyncio.CancelledError, ConnectionError):
                raise
            except BaseException:
                progress.outcome = "failed"
                raise
            finally:
                progress.ended()
                notes: dict[str, object] = request[NOTES]
                notes |= progress.figures
                timeline.end({"request_id": request[REQUEST_ID], "model": self._model, **notes})

    # --- the request ---

    async def _understand(
        self, request: web.Request, place: Place, deadline: float, timeline: Timeline
    ) -> tuple[ChatRequest, Manner]:
        """Read and check the body, and load its media."""
        with timeline.span("read"):
            body = await self._body(request, place, deadline)
        recall = functools.partial(self._history.transcript, request[CLIENT])
        interpret = functools.partial(_interpret, body, self._voices, self._limits, recall)
        try:
            async with asyncio.timeout_at(deadline):
                with timeline.span("check"):
                    # Python checks a large body in a thread, so that other answers make progress in the meantime.
                    found = await asyncio.to_thread(interpret) if body.large else interpret()
                    del body, interpret  # from now on, only `sources` holds the bytes of the media
                chat, sources = found.chat, found.sources
                place.hold(found.restored_bytes)
                if sources:
                    with self._metrics.media_seconds.time(), timeline.span("load media"):
                        chat.media = await self._loader.load(sources, place.hold, client=request[CLIENT])
                    for medium in chat.media:
                        self._metrics.media_bytes.labels(medium.kind).inc(medium.nbytes)
        except TimeoutError as error:
            raise _too_late("The media of the request did not arrive in time.") from error
        return chat, found.manner

    async def _body(self, request: web.Request, place: Place, deadline: float) -> JsonBody:
        """The body. `request.read()` is not used, because it would keep the body in memory until the request ends."""
        if request.content_type != "application/json":
            raise bad_request(
                "The body must be sent as 'Content-Type: application/json'.", code="invalid_content_type", status=415
            )
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise bad_request(
                "The body is compressed; send it without 'Content-Encoding'.",
                code="invalid_content_encoding",
                status=415,
            )
        most = self._limits.body_bytes
        reader = JsonBodyReader(self._limits)
        too_large = (request.content_length or 0) > most
        try:
            latest = asyncio.get_running_loop().time() + self._limits.receive_seconds
            async with asyncio.timeout_at(min(latest, deadline)):
                while not too_large and (piece := await request.content.readany()):
                    place.hold(len(piece))
                    await reader.receive(piece)
                    too_large = reader.size > most
        except TimeoutError as error:
            raise _too_late("The request did not arrive in time.") from error
        if too_large:
            raise bad_request(f"The request body is larger than {most} bytes.", code="body_too_large", status=413)
        return reader.finish()

    # --- the answer ---

    def _encoder(self, manner: Manner) -> ThreadedEncoder | None:
        if manner.audio_format is None:
            return None
        make = functools.partial(stream_encoder, one_file=manner.one_file) if manner.stream else file_encoder
        return ThreadedEncoder(functools.partial(make, manner.audio_format), self.audio_threads)

    async def _whole(
        self,
        request: web.Request,
        place: Place,
        answer: Answer,
        answer_format: AnswerFormat,
        encoder: ThreadedEncoder | None,
        keep: Callable[[str], int],
        progress: RequestProgress,
    ) -> web.Response:
        deltas: list[TextDelta] = []
        audio = bytearray()
        text_done: TextDone | None = None
        audio_done: AudioDone | None = None
        while bodies := await answer.take():
            place.free()
            progress.saw(bodies)
            for body in bodies:
                match body:
                    case TextDelta():
                        deltas.append(body)
                    case AudioDelta() if encoder is not None:
                        with progress.timeline.span("code sound"):
                            audio += await encoder.feed(body.samples.numpy())
                    case TextDone():
                        text_done = body
                    case AudioDone():
                        audio_done = body
        if text_done is None or (encoder is not None and audio_done is None):
            raise _unfinished()
        with progress.timeline.span("write"):
            speech = None
            if encoder is not None and audio_done is not None:
                audio += await encoder.finish()
                speech = Speech(bytes(audio), audio_done, keep("".join(delta.text for delta in deltas)))
            response = json_response(answer_format.whole(deltas, text_done, speech))
            async with _bounded(request, answer, progress):
                await response.prepare(request)
                await response.write_eof()
                progress.outcome = "ok"
        return response

    async def _stream(
        self, request: web.Request, place: Place, answer: Answer, writer: EventWriter, progress: RequestProgress
    ) -> web.StreamResponse:
        # Wait for a message before sending the headers, so that an error gets its own status. The wait is bounded, so
        # that a proxy does not give up.
        bodies = await self._soon(answer)
        response = web.StreamResponse(headers=sse.HEADERS)
        async with _bounded(request, answer, progress):
            with progress.timeline.span("write"):
                await response.prepare(request)
            try:
                if bodies is None:
                    await response.write(sse.KEEP_ALIVE)
                    bodies = await self._next(answer, response)
                place.free()
                await self._write(response, bodies, answer, writer, progress)
            except OmniError as error:
                progress.failed(error.info)
                await response.write(sse.event(error_body(error.info)))
                await response.write_eof()
        return response

    async def _write(
        self,
        response: web.StreamResponse,
        bodies: list[Body],
        answer: Answer,
        writer: EventWriter,
        progress: RequestProgress,
    ) -> None:
        """Write all events of an answer. `bodies` are the first messages of the answer."""
        events = writer.opening()
        while bodies:
            progress.saw(bodies)
            with progress.timeline.span("write"):
                events += await writer.events(bodies)
                if events:
                    await response.write(events)
                    events = b""
            bodies = await self._next(answer, response)
        if not writer.complete:
            raise _unfinished()
        with progress.timeline.span("write"):
            await response.write(await writer.closing())
            await response.write_eof()
        progress.outcome = "ok"

    async def _next(self, answer: Answer, response: web.StreamResponse) -> list[Body]:
        """The next messages of `answer`. While no message comes, comments keep the stream alive."""
        while (bodies := await self._soon(answer)) is None:
            await response.write(sse.KEEP_ALIVE)
        return bodies

    async def _soon(self, answer: Answer) -> list[Body] | None:
        """The next messages of `answer`, or None if the stream has been quiet for too long."""
        try:
            async with asyncio.timeout(self._limits.keep_alive_seconds):
                return await answer.take()
        except TimeoutError:
            return None


@asynccontextmanager
async def _bounded(request: web.Request, answer: Answer, progress: RequestProgress) -> AsyncIterator[None]:
    """Bound the time for which the block waits for the client to read.

    `answer` fails when its deadline passes or when too many of its bytes are unread. If the block has not ended
    `GRACE_SECONDS` later, the connection is cut off: a client that does not even read the error must not keep its
    connection.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as patience:
            answer.on_error(lambda: patience.reschedule(loop.time() + GRACE_SECONDS))
            yield
    except TimeoutError:
        if answer.error is not None and progress.outcome == "cancelled":
            progress.failed(answer.error)
        if request.transport is not None:
            request.transport.abort()


def _interpret(
    body: JsonBody, voices: Voices | None, limits: Limits, recall: Callable[[str], str | None]
) -> _Interpretation:
    wanted = parse(body, limits)
    restored = restore_transcripts(wanted, recall, room=limits.text_bytes - len(body.outline), most=limits.text_bytes)
    chat, sources = convert(wanted, voices, limits, body.strings)
    return _Interpretation(chat, sources, manner_of(wanted), restored)


def _unfinished() -> OmniError:
    return internal("The answer ended inside the server before it was complete.", code="stream_gap")


def _too_late(message: str) -> OmniError:
    return bad_request(message, code="request_timeout", status=408)
