"""The common part of all endpoints that use the pipeline. An *exchange* is one request and its answer, from the
admission of the request until the answer is sent.

The request is an HTTP request, or the request for one response in a conversation over a WebSocket.
"""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from aiohttp import web
from msgspec import Struct

from gateway.admission import Admission, PartPlace, Place
from gateway.answers import request_body
from gateway.answers.collector import Answer, Collector
from gateway.answers.progress import RequestProgress
from gateway.answers.sender_number import set_sender
from gateway.api.conversion import MediaSource
from gateway.bodies.json_body import JsonBody
from gateway.bodies.multipart import Part, Room
from gateway.http.middleware import CLIENT, NOTES, REQUEST_ID
from gateway.media.loading import MediaLoader
from gateway.media.threads import Threads
from gateway.metrics import Metrics
from gateway.prompt_chain import chain_of
from gateway.traces.traces import Traces
from omni_pipeline.config.schema import Limits
from omni_pipeline.contract.prompt_chain import UNKNOWN_PROMPT
from omni_pipeline.errors import OmniError
from omni_pipeline.wire.trace_notes import MARK
from stages.messages import ChatRequest, EntryRequest, Media, SpeechRequest
from stages.routes import route

Interpreted = TypeVar("Interpreted")

# Number of threads that check large bodies.
_BODY_THREADS = 4


class Sender(Struct, frozen=True):
    """The source of one request.

    Attributes:
        client: Identifies the client, see `gateway.http.middleware.CLIENT`.
        request_id: Id of the request in logs and traces.
        headers: Headers of the HTTP request. The header `traceparent` contains the id of the client's own trace, and
            this request becomes a part of that trace.
        notes: Values for the request's log line. Each key is the name of a value. Values are added during the
            request.
    """

    client: str
    request_id: str
    headers: Mapping[str, str]
    notes: dict[str, object]


class Exchanges:
    """Opens an `Exchange` for each request.

    Args:
        model: Name of the model in the traces.
        limits: Bounds on load.
        traces: Records the timeline of each request.
    """

    def __init__(
        self,
        collector: Collector,
        loader: MediaLoader,
        metrics: Metrics,
        admission: Admission,
        *,
        model: str,
        limits: Limits,
        traces: Traces,
    ) -> None:
        self.collector = collector
        self.loader = loader
        self.metrics = metrics
        self.limits = limits
        self._admission = admission
        self._threads = Threads("check body", _BODY_THREADS)
        self._model = model
        self._traces = traces

    def hold(self, client: str, count: int) -> None:
        """Add `count` to the number of bytes that the server holds for a client outside of requests. A negative `count`
        releases bytes. Raises OmniError (429) if the limit on bytes would be exceeded.
        """
        self._admission.hold(client, count)

    async def in_thread(self, client: str, work: Callable[[], Interpreted]) -> Interpreted:
        """Do work on a large body in a thread, so that other answers make progress in the meantime. Clients share the
        threads and take turns. Returns the result of `work`, or raises its error.
        """
        return await self._threads.run(client, work)

    @property
    def crowded(self) -> bool:
        """Whether requests wait, or at least half of the places are taken."""
        return self._admission.crowded

    @asynccontextmanager
    async def open(self, request: web.Request) -> AsyncIterator[HttpExchange]:
        """Admit an HTTP request, and measure it until the block ends.

        Raises:
            OmniError: 429 if no place becomes free in time; 503 if the server is stopping.
        """
        sender = Sender(request[CLIENT], request[REQUEST_ID], request.headers, request[NOTES])
        async with self._admitted(sender) as (place, deadline, progress):
            yield HttpExchange(self, sender, place, deadline, progress, request)

    @asynccontextmanager
    async def open_for(self, sender: Sender) -> AsyncIterator[Exchange]:
        """Does the same as `open` for a request that is not a separate HTTP request."""
        async with self._admitted(sender) as (place, deadline, progress):
            yield Exchange(self, sender, place, deadline, progress)

    @asynccontextmanager
    async def _admitted(self, sender: Sender) -> AsyncIterator[tuple[Place, float, RequestProgress]]:
        deadline = asyncio.get_running_loop().time() + self.limits.request_seconds
        with self._watched(sender) as progress:
            async with self._admission.admit(sender.client, deadline) as place:
                progress.timeline.until_now("wait for admission")
                yield place, deadline, progress

    @contextmanager
    def _watched(self, sender: Sender) -> Iterator[RequestProgress]:
        timeline = self._traces.begin(sender.headers, sender.client)
        if timeline.trace_id is not None:
            sender.notes["trace_id"] = timeline.trace_id
        progress = RequestProgress(self.metrics, timeline)
        with self.metrics.in_flight.track_inprogress():
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
                sender.notes.update(progress.figures)
                timeline.end({"request_id": sender.request_id, "model": self._model, **sender.notes})


class Exchange:
    """One admitted request and its answer.

    Attributes:
        sender: The source of the request.
        place: The resources of the request.
        deadline: Time on the event loop's clock at which the request fails.
        progress: Measures the request.
    """

    def __init__(
        self, shared: Exchanges, sender: Sender, place: Place, deadline: float, progress: RequestProgress
    ) -> None:
        self.sender = sender
        self.place = place
        self.deadline = deadline
        self.progress = progress
        self.limits = shared.limits
        self._shared = shared

    def new_id(self, prefix: str) -> str:
        """A new id for the answer, which begins with `prefix`. The id ends with `MARK` if the workers must trace the
        request.
        """
        return f"{prefix}{uuid.uuid4().hex}{MARK if self.progress.timeline.asked else ''}"

    async def load(self, sources: list[MediaSource]) -> list[Media]:
        """Load the media of the request. This method does not decode the media.

        Raises:
            OmniError: 400 or 413 if the media policy forbids an item or an item cannot be loaded; 408 at the deadline;
                429 if the server has no room for the bytes of the media.
        """
        if not sources:
            return []
        metrics = self._shared.metrics
        with metrics.media_seconds.time(), self.progress.timeline.span("load media"):
            async with self._in_time():
                media = await self._shared.loader.load(sources, self.place.hold, client=self.sender.client)
        self.count(media)
        return media

    def count(self, media: Iterable[Media]) -> None:
        """Count the bytes of media that have been loaded or that the body contained."""
        for medium in media:
            self._shared.metrics.media_bytes.labels(medium.kind).inc(medium.nbytes)

    async def submit(self, answer_id: str, body: EntryRequest, *, more: Collection[str] = ()) -> Answer:
        """Hand the request to the pipeline. The caller should drop its own reference to `body`, which holds the media.

        Args:
            more: Further stages. The request itself does not need these stages, but its parts do. See `submit_part`.

        Raises:
            OmniError: 429 if the spoken answer cannot begin in time, if a stage is full, or if there is no room for all
                choices of the request; 503 if a stage that the request needs does not run.
        """
        self.place.arrived()
        self.sender.notes["answer_id"] = answer_id
        if isinstance(body, ChatRequest | SpeechRequest) and body.speech is not None and body.speech.streamed:
            with self.progress.timeline.span("wait to speak"):
                await self.place.speak(self.deadline)
        set_sender(body, self.sender.client)
        stages = route(body)
        choices = body.text.choices if isinstance(body, ChatRequest) else 1
        self.place.need(stages.all.union(more), choices)
        self.progress.timeline.follow(answer_id)
        collector = self._shared.collector
        with self.progress.timeline.span("submit"):
            chain = UNKNOWN_PROMPT
            if isinstance(body, ChatRequest) and collector.compares_prompts:
                chain = await chain_of(body, functools.partial(self._shared.in_thread, self.sender.client))
            await collector.ready(stages)
            return collector.submit(
                answer_id,
                body,
                stages,
                deadline=self.deadline,
                place=self.place,
                played=isinstance(body, SpeechRequest),
                chain=chain,
            )

    async def submit_part(self, part_id: str, body: EntryRequest, whole_id: str) -> Answer:
        """Hand a part of the request to the pipeline, as a separate request. The part shares the resources of the whole
        request. The part uses data that stages keep for the request `whole_id`.

        Raises:
            OmniError: 503 if a stage that the part needs does not run.
        """
        set_sender(body, self.sender.client)
        collector, stages = self._shared.collector, route(body)
        self.progress.timeline.follow_part(part_id)
        await collector.ready(stages)
        place = PartPlace(self.place)
        return collector.submit(part_id, body, stages, deadline=self.deadline, place=place, beside=whole_id)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """End the block at the deadline, with the error for a request that did not arrive in time."""
        try:
            async with asyncio.timeout_at(self.deadline):
                yield
        except TimeoutError as error:
            raise request_body.too_late(
                "The server could not read the body and the media within the time that it allows for a request."
            ) from error


class HttpExchange(Exchange):
    """One admitted HTTP request and its answer.

    Attributes:
        request: The HTTP request.
    """

    def __init__(
        self,
        shared: Exchanges,
        sender: Sender,
        place: Place,
        deadline: float,
        progress: RequestProgress,
        request: web.Request,
    ) -> None:
        super().__init__(shared, sender, place, deadline, progress)
        self.request = request

    async def read_json(self, interpret: Callable[[JsonBody], Interpreted]) -> Interpreted:
        """Read the body, and pass the body to `interpret`. After the call, only the result of `interpret` may contain
        parts of the body.

        Raises:
            OmniError: The errors that `request_body.read_json` and `interpret` raise. Also 408 at the deadline.
        """
        timeline = self.progress.timeline
        with timeline.span("read"):
            body = await request_body.read_json(self.request, self.place, self.limits, self.deadline)
        with timeline.span("check"):
            async with self._in_time():
                if not body.large:
                    return interpret(body)
                work = functools.partial(interpret, body)
                return await self._shared.in_thread(self.sender.client, work)

    async def read_form(self, room: Callable[[str], Room]) -> list[Part]:
        """Read the fields of a form. Raises OmniError as `request_body.read_form` does."""
        with self.progress.timeline.span("read"):
            return await request_body.read_form(self.request, self.place, self.limits, self.deadline, room)
