"""Handles `POST /v1/chat/completions`, from the HTTP request to its answer: a single response or a stream."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Executor

from aiohttp import web
from msgspec import Struct

from gateway.answers.audio_formats import ThreadedEncoder, file_encoder, stream_encoder
from gateway.answers.chat_events import EventWriter
from gateway.answers.collector import Answer
from gateway.answers.exchange import Exchanges, HttpExchange
from gateway.answers.sending import send_stream, send_whole, unfinished
from gateway.answers.spoken_history import SpokenHistory, restore_transcripts
from gateway.api.conversion import MediaSource, convert
from gateway.api.responses import AnswerFormat, Speech, WrittenText, only_calls
from gateway.api.schema import AudioFormat, ChatCompletionRequest
from gateway.api.validation import parse
from gateway.api.voices import Voices
from gateway.bodies.json_body import JsonBody
from gateway.http.middleware import CLIENT, json_response
from omni_pipeline.config.schema import Limits
from stages.messages import AudioDelta, AudioDone, ChatRequest, TextDelta, TextDone


class Manner(Struct, frozen=True):
    """The form of the answer that the client has asked for. The handler keeps a `Manner` and drops the parsed body,
    which may be large.

    Attributes:
        stream: Whether to send the answer as server-sent events.
        with_usage: Whether the last event of a stream contains the numbers of tokens.
        with_content: Whether to send the text as `content`, not only as the transcript of the speech.
        audio_format: Format of the speech; None for an answer without speech.
        one_file: Whether all chunks of streamed speech must form one file when joined, even in WAV. Otherwise, each WAV
            chunk is a separate file.
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
    """The contents of a request body.

    Attributes:
        chat: The request without its media.
        sources: The sources of the media.
        manner: The form of the answer that the client has asked for.
        restored_bytes: Size of the transcripts whose ids are in the body.
    """

    chat: ChatRequest
    sources: list[MediaSource]
    manner: Manner
    restored_bytes: int


class ChatCompletions:
    """The handler of chat completions.

    Args:
        exchanges: Opens the exchange of each request.
        model: Name of the model in the answers.
        voices: Voices of the pipeline; None if the pipeline does not speak.
        history: The transcripts of spoken answers. A request can refer to each of them by its id.
        audio_threads: Thread pool that encodes the speech of all answers.
    """

    def __init__(
        self,
        exchanges: Exchanges,
        *,
        model: str,
        voices: Voices | None,
        history: SpokenHistory,
        audio_threads: Executor,
    ) -> None:
        self._exchanges = exchanges
        self._model = model
        self._voices = voices
        self._history = history
        self._audio_threads = audio_threads

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Answer one request.

        A request goes through the following steps. The text names the module that does each step. A module is in
        `gateway`, unless its name begins with another package.

        1. `http.connections` reads the head of the request. `http.middleware` gives the request an id and checks the
           API key. `serving.app` routes the request to this method.
        2. `answers.exchange` opens the exchange: `traces.traces` begins a timeline, and `answers.progress` begins to
           measure.
        3. `admission` admits the request, or makes it wait for its turn. The deadline is `limits.request_seconds` after
           the arrival of the request.
        4. `answers.request_body` reads the body, within `limits.receive_seconds`. `bodies.reader` limits the structure
           and the text of the body, and stores long strings separately. `admission` counts the bytes of body and media.
        5. `api.validation` decodes and checks the body. If the body contains ids of earlier spoken answers,
           `answers.spoken_history` looks up their transcripts. `api.conversion` turns the result into a `ChatRequest`,
           with the help of `api.sampling`, `api.lengths` and `api.voices`.
        6. `media.loading` reads the media from the body, or calls `media.remote` or `media.local_files` to load them.
        7. `stages.routes` lists the stages that the request needs. `admission` counts the request in each of them. Each
           choice after the first one counts as one more request.
        8. If the thinker has replicas, `gateway.prompt_chain` hashes the prompt. `answers.collector` waits while any of
           the stages is being restarted. Then it hands the request to `omni_pipeline.supervision.pipeline`, which
           chooses the replicas and sends the request to the entry stage.
        9. The stages compute the answer. `answers.collector` receives their messages, checks that no message is
           missing, and keeps the messages until this method reads them. Before a stage decodes media, it waits until
           `grants` has granted the memory. When the first message arrives, `admission` stops counting the bytes.
        10. The messages become the response. For a whole answer, `_whole` joins the messages, and `api.responses` makes
            one JSON body. For a streamed answer, `answers.chat_events` turns the messages into chunks of
            `api.responses`, and `http.sse` frames the chunks. In both cases, `answers.audio_formats` encodes the speech
            in threads, `answers.spoken_history` keeps the transcript when the answer is complete, and `answers.sending`
            sends the response.
        11. When the request ends, with or without an error, the steps are undone in reverse order. `answers.collector`
            closes the answer. If the answer was not complete, the request is aborted in its workers. `admission` admits
            the next request as soon as the workers hold no data of this request. `answers.progress` counts the outcome.
            `traces.traces` ends the timeline. `http.middleware` turns an error into a response and writes the log line.

        A request can end in the following ways. The outcome that metrics and log show is in parentheses:

        - Answered whole (``ok``): 200 with one JSON body.
        - Streamed (``ok``): 200 with events; the last event is ``[DONE]``.
        - Refused (``refused``): 4xx. Steps 3 to 7 refuse a request that is wrong, too large or forbidden, or for which
          the server has no room now (429). A stage refuses, for example, a damaged picture or a prompt that is too
          long. If step 1 refuses a request because of its connection, key or path, the request has no outcome, because
          it does not reach this method.
        - Timed out while it waits for its turn (``refused``): 429 at the deadline.
        - Timed out while body or media arrive (``refused``): 408 if the body takes longer than
          `limits.receive_seconds`, or at the deadline; 400 if a download takes longer than `media.fetch_seconds`.
        - Timed out while a stage is being restarted (``failed``): 503 after `limits.restart_seconds`, or at once if the
          restart will certainly take longer.
        - Timed out before the answer was complete and sent (``failed``): 504 at the deadline, by `answers.collector`.
          If a whole answer is already being sent, or if the client does not read, the connection is closed instead.
        - Client left (``cancelled``): aiohttp cancels this method, or a write raises ConnectionError. There is no
          response. Step 11 aborts the request in its workers.
        - Client reads too slowly (``failed``): 503 when more than `limits.reader_bytes` of the answer are unread.
        - Worker lost (``failed``): 503 from `answers.collector`, at once, if the request still needs a stage of that
          worker. All other requests continue.
        - Server stopping (``failed``): 503 for a request that arrives or waits for its turn, and for a request in the
          pipeline that does not end within `server.drain_seconds`.
        - Bug (``failed``): 500. An unexpected error in a stage or a missing message also has this status. If the engine
          of a language model fails a request, the status is 503.

        Until the headers of a stream are sent, an error is a response with its own status. The headers are sent with
        the first message, or after `limits.keep_alive_seconds` without a message. From then on, the status is 200. An
        error is then sent as the last event of the stream. The event ``[DONE]`` does not follow it. If the client does
        not read that event within `GRACE_SECONDS`, the connection is closed. The request holds its place until the
        operating system has accepted the last byte of the answer.
        """
        async with self._exchanges.open(request) as exchange:
            chat, manner = await self._understand(exchange)
            exchange.progress.streamed = manner.stream
            answer_id = exchange.new_id("chatcmpl-")
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
            choices = chat.text.choices
            answer = await exchange.submit(answer_id, chat)
            del chat  # from now on the pipeline holds the media
            async with answer:
                if manner.stream:
                    return await send_stream(exchange, answer, EventWriter(answer_format, encoder, keep, choices))
                return await self._whole(exchange, answer, answer_format, encoder, keep, choices)

    async def _understand(self, exchange: HttpExchange) -> tuple[ChatRequest, Manner]:
        """Read and check the body, and load its media."""
        recall = functools.partial(self._history.transcript, exchange.sender.client)
        interpret = functools.partial(_interpret, self._voices, exchange.limits, recall)
        found = await exchange.read_json(interpret)
        exchange.place.hold(found.restored_bytes)
        found.chat.media = await exchange.load(found.sources)
        return found.chat, found.manner

    def _encoder(self, manner: Manner) -> ThreadedEncoder | None:
        if manner.audio_format is None:
            return None
        make = functools.partial(stream_encoder, one_file=manner.one_file) if manner.stream else file_encoder
        return ThreadedEncoder(functools.partial(make, manner.audio_format), self._audio_threads)

    async def _whole(
        self,
        exchange: HttpExchange,
        answer: Answer,
        answer_format: AnswerFormat,
        encoder: ThreadedEncoder | None,
        keep: Callable[[str], int],
        choices: int,
    ) -> web.Response:
        progress = exchange.progress
        deltas: list[list[TextDelta]] = [[] for _ in range(choices)]
        audio = bytearray()
        texts_done: dict[int, TextDone] = {}
        audio_done: AudioDone | None = None
        while bodies := await answer.take():
            exchange.place.free()
            progress.saw(bodies)
            for body in bodies:
                match body:
                    case TextDelta():
                        deltas[body.choice].append(body)
                    case AudioDelta() if encoder is not None:
                        with progress.timeline.span("code sound"):
                            audio += await encoder.feed(body.samples.numpy())
                    case TextDone():
                        texts_done[body.choice] = body
                    case AudioDone():
                        audio_done = body
        if len(texts_done) < choices or (encoder is not None and audio_done is None):
            raise unfinished()
        texts = [WrittenText(own, texts_done[choice]) for choice, own in enumerate(deltas)]
        with progress.timeline.span("write"):
            speech = None
            if encoder is not None and audio_done is not None:
                audio += await encoder.finish()
                text = texts[0].text
                if not only_calls(text, called=bool(texts[0].calls), spoken=audio_done):
                    speech = Speech(bytes(audio), audio_done, keep(text))
            return await send_whole(exchange, answer, json_response(answer_format.whole(texts, speech)))


def _interpret(
    voices: Voices | None, limits: Limits, recall: Callable[[str], str | None], body: JsonBody
) -> _Interpretation:
    wanted = parse(body, limits)
    restored = restore_transcripts(wanted, recall, room=limits.text_bytes - len(body.outline), most=limits.text_bytes)
    chat, sources = convert(wanted, voices, limits, body.strings)
    return _Interpretation(chat, sources, manner_of(wanted), restored)
