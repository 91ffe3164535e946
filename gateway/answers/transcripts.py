"""Handles `POST /v1/audio/transcriptions` and `POST /v1/audio/translations`."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from msgspec import Struct

from gateway.answers.collector import Answer
from gateway.answers.exchange import Exchange, Exchanges, HttpExchange
from gateway.answers.piece_answers import PieceAnswers
from gateway.answers.sending import send_stream, send_whole, unfinished
from gateway.answers.transcript_text import TranscriptEvents, TranscriptText
from gateway.api.sampling import thinker_sampling
from gateway.api.transcription.request import (
    FILE,
    Form,
    TranscriptRequest,
    TranslationRequest,
    parse,
    room_for,
)
from gateway.api.transcription.responses import transcript, verbose_transcript, whole_text
from gateway.http.middleware import json_response
from omni_pipeline.config.schema import Limits, MediaPolicy
from omni_pipeline.wire.tensor import Tensor
from stages.messages import Media, PieceRequest, Recording, Sampling, TextOutput
from stages.routes import TRANSCRIPT


class Task(Struct, frozen=True):
    """The contents of a form (the body of a request), converted to the pipeline's types.

    Attributes:
        recording: The sound, and whether to transcribe or to translate it.
        sampling, text: The options for each piece of the sound.
    """

    recording: Recording
    sampling: Sampling
    text: TextOutput


def task_of(form: Form, limits: Limits) -> Task:
    """The task that a form describes. Raises OmniError (400) if the form asks for more tokens than the limits allow."""
    request = form.request
    recording = Recording(
        Media("audio", Tensor.of(form.file), FILE),
        request.task,
        request.language,
        request.to_language if isinstance(request, TranslationRequest) else "",
        request.prompt or "",
        limits.recording_pieces,
    )
    verbose = request.response_format == "verbose_json"
    text = TextOutput(
        logprobs=verbose or "logprobs" in request.include, return_token_ids=verbose, stream=request.stream
    )
    return Task(recording, thinker_sampling(request.sampling(), limits), text)


class Transcripts:
    """The handler of both endpoints. A request goes through the steps of `ChatCompletions.post`, with these
    differences:

    - The body is a form, which `bodies.multipart` reads.
    - The sound is sent to the stage `preprocessing` in a separate request. The stage divides the sound into pieces, and
      answers with the times of the pieces. The stage keeps the sound until this handler has ended.
    - Each piece is then a request to the pipeline. `answers.piece_answers` sends further pieces while the first pieces
      are answered, and joins the answers.

    Args:
        exchanges: Opens the exchange of each request.
        media: Limits on the file.
    """

    def __init__(self, exchanges: Exchanges, media: MediaPolicy) -> None:
        self._exchanges = exchanges
        self._media = media

    async def transcribe(self, request: web.Request) -> web.StreamResponse:
        """Handle a request to transcribe a sound."""
        return await self._answer(request, TranscriptRequest)

    async def translate(self, request: web.Request) -> web.StreamResponse:
        """Handle a request to translate a sound."""
        return await self._answer(request, TranslationRequest)

    async def _answer(self, request: web.Request, kind: type[TranscriptRequest]) -> web.StreamResponse:
        async with self._exchanges.open(request) as exchange:
            room = functools.partial(room_for, kind, self._media, exchange.limits)
            form = parse(kind, await exchange.read_form(room))
            task = task_of(form, exchange.limits)
            exchange.progress.streamed = form.request.stream
            exchange.count([task.recording.sound])
            wanted = form.request
            del form
            async with pieces_of(exchange, exchange.new_id("transcript-"), task) as answer:
                del task  # from now on the pipeline holds the sound
                if wanted.stream:
                    return await send_stream(exchange, answer, TranscriptEvents(with_logprobs=bool(wanted.include)))
                return await send_whole(exchange, answer, await _whole(exchange, answer, wanted))


@asynccontextmanager
async def pieces_of(exchange: Exchange, answer_id: str, task: Task) -> AsyncIterator[PieceAnswers]:
    """Hand a task to the pipeline. Yields the answers to the pieces of the task's recording.

    Raises:
        OmniError: The errors that `Exchange.submit` raises.
    """
    at_once = task.recording.at_once
    recording = await exchange.submit(answer_id, task.recording, more=TRANSCRIPT.all)
    submit = functools.partial(_submit_piece, exchange, answer_id, task.sampling, task.text)
    del task
    async with recording, PieceAnswers(recording, submit, at_once) as answer:
        yield answer


async def _whole(exchange: HttpExchange, answer: PieceAnswers, request: TranscriptRequest) -> web.Response:
    """The response that is sent when all pieces have been answered."""
    text = TranscriptText()
    while bodies := await answer.take():
        exchange.place.free()
        exchange.progress.saw(bodies)
        for body in bodies:
            text.add(body)
    if not text.complete or text.cut is None:
        raise unfinished()
    match request.response_format:
        case "text":
            return web.Response(text=whole_text(text.pieces), content_type="text/plain", charset="utf-8")
        case "json":
            return json_response(transcript(text.pieces, with_logprobs=bool(request.include)))
        case "verbose_json":
            temperature = request.temperature or 0.0
            return json_response(verbose_transcript(text.pieces, text.cut, request.task, temperature))


async def _submit_piece(exchange: Exchange, answer_id: str, sampling: Sampling, text: TextOutput, index: int) -> Answer:
    return await exchange.submit_part(f"{answer_id}-{index}", PieceRequest(answer_id, index, sampling, text), answer_id)
