"""Handles `POST /v1/responses`. A request is converted to the chat request that asks for the same answer. This module
only converts between the two APIs. `gateway.answers.chat` describes the steps of a request.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from aiohttp import web
from msgspec import Struct

from gateway.answers.collector import Answer, Body
from gateway.answers.exchange import Exchanges, HttpExchange
from gateway.answers.sending import send_stream, send_whole, unfinished
from gateway.api.conversion import MediaSource, convert
from gateway.api.responses_api.building import ResponseBuilder, begun
from gateway.api.responses_api.chat_form import Places
from gateway.api.responses_api.objects import Event
from gateway.api.responses_api.reading import read
from gateway.api.responses_api.schema import ResponsesRequest
from gateway.bodies.json_body import JsonBody
from gateway.http import sse
from gateway.http.middleware import json_response
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import ErrorInfo, OmniError
from stages.messages import ChatRequest, TextDelta, TextDone


class _Interpretation(Struct, frozen=True):
    """The contents of a request body.

    Attributes:
        request: The request as the client sent it, without its input.
        chat: The request for the pipeline, without its media.
        sources: The sources of the media.
        places: Translates a path in the chat request into the path of the same data in the body. Error messages contain
            the paths in the body.
    """

    request: ResponsesRequest
    chat: ChatRequest
    sources: list[MediaSource]
    places: Places


class Responses:
    """The handler of responses.

    Args:
        exchanges: Opens the exchange of each request.
        model: Name of the model in the answers.
    """

    def __init__(self, exchanges: Exchanges, *, model: str) -> None:
        self._exchanges = exchanges
        self._model = model

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        async with self._exchanges.open(request) as exchange:
            found = await self._understand(exchange)
            response_id = exchange.new_id("resp_")
            builder = ResponseBuilder(begun(response_id, self._model, found.request, found.chat.thinker))
            stream, places = found.chat.text.stream, found.places
            exchange.progress.streamed = stream
            try:
                answer = await exchange.submit(response_id, found.chat)
                del found  # from now on the pipeline holds the media
                async with answer:
                    if stream:
                        return await send_stream(exchange, answer, EventWriter(builder, places))
                    return await self._whole(exchange, answer, builder)
            except OmniError as error:
                raise OmniError(places.error(error.info)) from error

    async def _understand(self, exchange: HttpExchange) -> _Interpretation:
        """Read and check the body, and load its media."""
        found = await exchange.read_json(functools.partial(_interpret, limits=exchange.limits))
        found.chat.media = await exchange.load(found.sources)
        found.sources.clear()
        return found

    async def _whole(self, exchange: HttpExchange, answer: Answer, builder: ResponseBuilder) -> web.Response:
        progress = exchange.progress
        done: TextDone | None = None
        while bodies := await answer.take():
            exchange.place.free()
            progress.saw(bodies)
            for body in bodies:
                match body:
                    case TextDelta():
                        builder.extend(body)
                    case TextDone():
                        done = body
        if done is None:
            raise unfinished()
        with progress.timeline.span("write"):
            builder.end(done)
            return await send_whole(exchange, answer, json_response(builder.response))


class EventWriter:
    """Writes one streamed response.

    Args:
        builder: Builds the response and its events.
        places: Translates a path in the chat request into the path of the same data in the body. Error messages contain
            the paths in the body.
    """

    headers: Mapping[str, str] = sse.HEADERS
    keep_alive = sse.KEEP_ALIVE

    def __init__(self, builder: ResponseBuilder, places: Places) -> None:
        self._builder = builder
        self._places = places
        self._done: TextDone | None = None

    def opening(self) -> bytes:
        """The events before the first message."""
        return _written(self._builder.begin())

    async def events(self, bodies: list[Body]) -> bytes:
        """The events for `bodies`."""
        events: list[Event] = []
        for body in bodies:
            match body:
                case TextDelta():
                    events += self._builder.extend(body)
                case TextDone():
                    self._done = body
        return _written(events)

    @property
    def complete(self) -> bool:
        """Whether the whole answer has arrived."""
        return self._done is not None

    async def closing(self) -> bytes:
        """The events after the last message. OpenAI's streams of responses have no ``[DONE]``."""
        assert self._done is not None
        return _written(self._builder.end(self._done))

    def failure(self, info: ErrorInfo) -> bytes:
        """The last event of a stream that has failed."""
        return _written(self._builder.fail(self._places.error(info)))


def _written(events: list[Event]) -> bytes:
    return b"".join(sse.event(event, str(event.__struct_config__.tag)) for event in events)


def _interpret(body: JsonBody, limits: Limits) -> _Interpretation:
    wanted = read(body, limits)
    places = wanted.places
    try:
        chat, sources = convert(wanted.chat, None, limits, body.strings)
    except OmniError as error:
        raise OmniError(places.error(error.info)) from error
    wanted.request.input = ""  # the response does not repeat the input, and the input may be large
    return _Interpretation(wanted.request, chat, [places.source(source) for source in sources], places)
