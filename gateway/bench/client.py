"""Sends a request for a chat completion, and records when each piece of the answer arrives."""

from __future__ import annotations

import json
import time
from types import TracebackType

import aiohttp

from gateway.bench.completion import read_completion
from gateway.bench.events import DONE, AnswerError, EventSplitter, failure_of, read_event
from gateway.bench.timeline import AudioChunk, Failure, RequestTimes
from omni_pipeline.errors import StartupError

_PATH = "/v1/chat/completions"


class Client:
    """Connections to one server. As a context manager, closes the connections.

    Args:
        url: Address of the server, with or without ``/v1``.
        api_key: API key, sent as bearer token.
        timeout: Seconds for one request, from connecting to the end of its answer.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 600.0) -> None:
        self._base = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout

    async def __aenter__(self) -> Client:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            # no limit, because the load generator limits the number of requests in flight
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._timeout),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def model(self) -> str:
        """Name of the first model that the server lists.

        Raises:
            StartupError: if no server answers, or if the server lists no model.
        """
        try:
            async with self._session.get(f"{self._base}/v1/models") as response:
                body = await response.read()
                if response.status != 200:
                    raise StartupError(f"{self._base}/v1/models answers {response.status}: {body[:200].decode()}")
                return str(json.loads(body)["data"][0]["id"])
        except (aiohttp.ClientError, TimeoutError) as error:
            raise StartupError(f"No server answers at {self._base}: {error or 'timeout'}. Check --url.") from error
        except (ValueError, LookupError, TypeError) as error:
            raise StartupError(f"{self._base}/v1/models lists no model: choose a model with --model.") from error

    async def ask(self, body: bytes, *, streamed: bool = True) -> RequestTimes:
        """Send `body`, a JSON request, and read the answer. Failures are recorded in the result.

        Args:
            body: The request. Its field ``stream`` must have the same value as `streamed`.
            streamed: Whether the answer is a stream of events. If False, the answer is one JSON object.
        """
        began = time.perf_counter()
        timeline = RequestTimes(began=began)
        try:
            async with self._session.post(self._base + _PATH, data=body) as response:
                if response.status != 200:
                    timeline.failure = _refusal(await response.read(), response.status)
                elif streamed:
                    await _follow(response, timeline, began)
                else:
                    await _read_whole(response, timeline, began)
        except AnswerError as error:
            timeline.failure = Failure(error.code, str(error), status=200)
        except TimeoutError:
            timeline.failure = Failure(
                "timeout", f"the request was not answered within {self._timeout:g} s (--timeout)"
            )
        except aiohttp.ClientPayloadError as error:
            timeline.failure = Failure("stream_cut", str(error), status=200)
        except aiohttp.ClientError as error:
            timeline.failure = Failure("connection_failed", str(error))
        timeline.ended = timeline.ended or time.perf_counter() - began
        return timeline


async def _follow(response: aiohttp.ClientResponse, timeline: RequestTimes, began: float) -> None:
    """Record the events until ``[DONE]``. All events that arrive in one read get the same time.

    The stream is read to its end even after ``[DONE]``, so that the connection can be used again.
    """
    splitter = EventSplitter()
    async for received in response.content.iter_any():
        at = time.perf_counter() - began
        for data in splitter.feed(received):
            if data == DONE:
                timeline.ended = at
                break
            event = read_event(data)
            if event.failure is not None:
                timeline.failure = event.failure
                return
            if event.text:
                timeline.texts.append(at)
            if event.audio_seconds:
                timeline.sounds.append(AudioChunk(at, event.audio_seconds))
            if event.tokens is not None:
                timeline.tokens, timeline.prompt = event.tokens, event.prompt
            timeline.finish_reason = event.finish_reason or timeline.finish_reason
    if not timeline.ended:
        raise AnswerError("stream_cut", f"the stream ended without {DONE}")


async def _read_whole(response: aiohttp.ClientResponse, timeline: RequestTimes, began: float) -> None:
    body = await response.read()
    timeline.ended = time.perf_counter() - began  # before the body is decoded, which takes time in the client
    answer = read_completion(body)
    timeline.whole_seconds = answer.audio_seconds
    timeline.tokens, timeline.prompt = answer.tokens, answer.prompt
    timeline.finish_reason = answer.finish_reason


def _refusal(body: bytes, status: int) -> Failure:
    try:
        return failure_of(json.loads(body), status)
    except ValueError:
        return Failure(f"http_{status}", body[:200].decode(errors="replace"), status)
