"""`POST /v1/chat/completions`: from an HTTP request to its answer, whole or streamed."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web
from msgspec import Struct

from gateway import sse
from gateway.admission import Admission
from gateway.collector import Answer, Body, Collector
from gateway.conversion import convert
from gateway.health import Health
from gateway.media import MediaLoader
from gateway.metrics import Metrics
from gateway.middleware import NOTES, json_response
from gateway.responses import AnswerFormat, error_body
from gateway.route import route
from gateway.validation import parse
from omni_pipeline.config import Limits
from omni_pipeline.errors import ErrorInfo, OmniError, bad_request, internal, unavailable
from stages.messages import ChatRequest, TextDelta, TextDone

# A quiet stream gets a comment this often, so that nothing on the way takes it for dead.
KEEP_ALIVE_SECONDS = 15.0
# How long a failed stream may take to read its error before its connection is cut.
ERROR_SECONDS = 5.0


class _Progress:
    """Measures one request for the metrics and the log.

    Attributes:
        outcome: How it ended; ``cancelled`` until something else is known.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.outcome = "cancelled"
        self.began = time.monotonic()
        self._metrics = metrics
        self._last_text: float | None = None

    def failed(self, info: ErrorInfo) -> None:
        """The request got an error."""
        self.outcome = "refused" if info.status < 500 else "failed"
        self._metrics.errors.labels(info.code or "none").inc()

    def saw(self, bodies: list[Body]) -> None:
        """A part of the answer has come."""
        if any(isinstance(body, TextDelta) and body.text for body in bodies):
            now = time.monotonic()
            if self._last_text is None:
                self._metrics.first_text_seconds.observe(now - self.began)
            else:
                self._metrics.inter_text_seconds.observe(now - self._last_text)
            self._last_text = now
        for body in bodies:
            if isinstance(body, TextDone):
                self._metrics.count_tokens(body.usage)

    def ended(self) -> None:
        """The request is over, one way or another."""
        self._metrics.requests.labels(self.outcome).inc()
        self._metrics.request_seconds.observe(time.monotonic() - self.began)


class _Manner(Struct, frozen=True):
    """How the client wants its answer sent: all that is kept of a body, which may be large, once it is read."""

    stream: bool
    with_usage: bool


class ChatCompletions:
    """The handler and what it works with.

    Args:
        admission: Lets requests in.
        model: Name that answers carry.
        limits: Bounds on load.
    """

    def __init__(
        self,
        collector: Collector,
        loader: MediaLoader,
        metrics: Metrics,
        health: Health,
        admission: Admission,
        *,
        model: str,
        limits: Limits,
    ) -> None:
        self._collector = collector
        self._loader = loader
        self._metrics = metrics
        self._health = health
        self._model = model
        self._limits = limits
        self._admission = admission

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Answer one request. It is cancelled when the client leaves, and then tells every stage."""
        deadline = asyncio.get_running_loop().time() + self._limits.request_seconds
        with self._watched(request) as progress, self._admission.admit():
            if self._health.stopping:
                raise unavailable("The server is shutting down.", code="shutting_down")
            chat, manner = await self._understand(request, deadline)
            answer_id = f"chatcmpl-{uuid.uuid4().hex}"
            request[NOTES]["answer_id"] = answer_id
            answer_format = AnswerFormat(
                answer_id,
                self._model,
                with_logprobs=chat.text.logprobs,
                with_ids=chat.text.return_token_ids,
                with_usage=manner.with_usage,
            )
            answer = self._collector.submit(answer_id, chat, route(chat), deadline=deadline)
            del chat  # the media are the pipeline's now
            async with answer:
                if manner.stream:
                    return await self._stream(request, answer, answer_format, progress)
                return await self._whole(answer, answer_format, progress)

    @contextmanager
    def _watched(self, request: web.Request) -> Iterator[_Progress]:
        progress = _Progress(self._metrics)
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
                request[NOTES]["outcome"] = progress.outcome

    # --- the request ---

    async def _understand(self, request: web.Request, deadline: float) -> tuple[ChatRequest, _Manner]:
        """Read and check the body, and load its media."""
        try:
            async with asyncio.timeout_at(deadline):
                wanted = parse(await self._body(request))
                chat, sources = convert(wanted)
                if sources:
                    with self._metrics.media_seconds.time():
                        chat.media = await self._loader.load(sources)
                    for medium in chat.media:
                        self._metrics.media_bytes.labels(medium.kind).inc(medium.data.nbytes)
        except TimeoutError as error:
            raise bad_request(
                "The request and its media did not arrive in time.", code="request_timeout", status=408
            ) from error
        options = wanted.stream_options
        return chat, _Manner(stream=bool(wanted.stream), with_usage=bool(options and options.include_usage))

    async def _body(self, request: web.Request) -> bytearray:
        """The body, read here and not by `request.read()`, which would keep it as long as the request."""
        if request.content_type != "application/json":
            raise bad_request(
                "The body must be sent as 'Content-Type: application/json'.", code="invalid_content_type", status=415
            )
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise bad_request("A compressed body is not taken.", code="invalid_content_encoding", status=415)
        most = self._limits.body_bytes
        body = bytearray()
        too_large = (request.content_length or 0) > most
        while not too_large and (piece := await request.content.readany()):
            body += piece
            too_large = len(body) > most
        if too_large:
            raise bad_request(f"The request body is larger than {most} bytes.", code="body_too_large", status=413)
        return body

    # --- the answer ---

    async def _whole(self, answer: Answer, answer_format: AnswerFormat, progress: _Progress) -> web.Response:
        deltas: list[TextDelta] = []
        done: TextDone | None = None
        while bodies := await answer.take():
            progress.saw(bodies)
            for body in bodies:
                if isinstance(body, TextDelta):
                    deltas.append(body)
                else:
                    done = body
        if done is None:
            raise _unfinished()
        progress.outcome = "ok"
        return json_response(answer_format.whole(deltas, done))

    async def _stream(
        self, request: web.Request, answer: Answer, answer_format: AnswerFormat, progress: _Progress
    ) -> web.StreamResponse:
        bodies = await answer.take()  # before the headers: an error until now gets its own status
        response = web.StreamResponse(headers=sse.HEADERS)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as patience:
                # A reader that does not even take its error must not hold on to the connection.
                answer.on_error(lambda: patience.reschedule(loop.time() + ERROR_SECONDS))
                await response.prepare(request)
                try:
                    await self._write(response, bodies, answer, answer_format, progress)
                except OmniError as error:
                    progress.failed(error.info)
                    request[NOTES]["code"] = error.info.code
                    await response.write(sse.event(error_body(error.info)))
                await response.write_eof()
        except TimeoutError:
            if answer.error is not None and progress.outcome == "cancelled":
                progress.failed(answer.error)
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _write(
        self,
        response: web.StreamResponse,
        bodies: list[Body],
        answer: Answer,
        answer_format: AnswerFormat,
        progress: _Progress,
    ) -> None:
        """Write the events of a whole answer that begins with `bodies`."""
        events = [sse.event(answer_format.opening())]
        done = False
        while bodies:
            progress.saw(bodies)
            for body in bodies:
                if isinstance(body, TextDone):
                    done = True
                    events += [sse.event(chunk) for chunk in answer_format.closing(body)]
                elif body.text or body.logprobs or body.ids:
                    events.append(sse.event(answer_format.delta(body)))
            if events:
                await response.write(b"".join(events))
                events.clear()
            bodies = await _next(answer, response)
        if not done:
            raise _unfinished()
        await response.write(sse.DONE)
        progress.outcome = "ok"


async def _next(answer: Answer, response: web.StreamResponse) -> list[Body]:
    """What comes next in `answer`; while nothing does, the stream is kept alive."""
    while True:
        try:
            async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                return await answer.take()
        except TimeoutError:
            await response.write(sse.KEEP_ALIVE)


def _unfinished() -> OmniError:
    return internal("The answer ended without saying why.", code="stream_gap")
