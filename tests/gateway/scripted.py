"""A pipeline that says what a test tells it to, and a gateway served over real sockets in front of it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import openai

from gateway.server import run
from omni_pipeline.config import Server
from omni_pipeline.errors import ErrorInfo, OmniError
from omni_pipeline.graph import COLLECTOR
from omni_pipeline.wire import Chunk, End, Failed, StageStats, Work
from stages.messages import ChatRequest, TextDelta, TextDone, TokenLogprob, TokenText, Usage

HELLO = {"messages": [{"role": "user", "content": "Hello?"}]}
USAGE = Usage(prompt_tokens=11, completion_tokens=3, cached_tokens=4, media_tokens={"image": 5, "audio": 2})


class ScriptedPipeline:
    """Answers every request with `answer`, or leaves it to the test when that is None.

    Attributes:
        submitted: Ids of requests in the order they came, the warm-up's excluded.
        aborted: Ids, as they were aborted.
        refusal: Raised by `submit` when set.
    """

    def __init__(self, answer: list[str] | None = None) -> None:
        self.answer = answer
        self.answers_warmup = True
        self.refusal: ErrorInfo | None = None
        self.bodies: dict[str, ChatRequest] = {}
        self.submitted: asyncio.Queue[str] = asyncio.Queue()
        self.aborted: asyncio.Queue[str] = asyncio.Queue()
        self.problem: str | None = None
        self.stats: Mapping[str, StageStats] = {}
        self.lost: Callable[[frozenset[str], ErrorInfo], None]
        self.deliver: Callable[[Work | Failed], None]
        self._counts: dict[str, int] = {}

    def connect(
        self, deliver: Callable[[Work | Failed], None], lost: Callable[[frozenset[str], ErrorInfo], None]
    ) -> None:
        self.deliver, self.lost = deliver, lost

    def submit(self, request_id: str, body: Any) -> None:
        if self.refusal is not None:
            raise OmniError(self.refusal)
        self.bodies[request_id] = body
        if request_id.startswith("warm-up"):
            if self.answers_warmup:
                asyncio.get_running_loop().call_soon(self.finish, request_id)
            return
        self.submitted.put_nowait(request_id)
        if self.answer is not None:
            asyncio.get_running_loop().call_soon(self.say_all, request_id, self.answer)

    def abort(self, request_id: str) -> None:
        self.aborted.put_nowait(request_id)

    def say(self, request_id: str, text: str, logprobs: list[TokenLogprob] | None = None) -> None:
        """One piece of text from decode."""
        seq = self._counts.get(request_id, 0)
        self._counts[request_id] = seq + 1
        self.deliver(Chunk(request_id, "decode", COLLECTOR, TextDelta(text, logprobs or []), seq=seq))

    def lose(self, request_id: str) -> None:
        """One piece of text that decode has sent and nobody gets."""
        self._counts[request_id] = self._counts.get(request_id, 0) + 1

    def finish(self, request_id: str, reason: Any = "stop") -> None:
        """The end of the text."""
        count = self._counts.get(request_id, 0)
        self.deliver(End(request_id, "decode", COLLECTOR, TextDone(reason, USAGE), count=count))

    def say_all(self, request_id: str, pieces: list[str]) -> None:
        for piece in pieces:
            self.say(request_id, piece)
        self.finish(request_id)

    def fail(self, request_id: str, error: ErrorInfo, source: str = "preprocessing") -> None:
        """A stage gives up on the request."""
        self.deliver(Failed(request_id, source, error))


def token(text: str, logprob: float = -0.5, top: tuple[tuple[str, float], ...] = ()) -> TokenLogprob:
    """A generated token, with alternatives."""
    return TokenLogprob(
        TokenText(text, list(text.encode()), logprob), [TokenText(t, list(t.encode()), p) for t, p in top]
    )


class Served:
    """A running gateway and ways to talk to it."""

    def __init__(
        self, port: int, pipeline: ScriptedPipeline, session: aiohttp.ClientSession, stopping: asyncio.Event
    ) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.pipeline = pipeline
        self.session = session
        self.stopping = stopping

    def openai(self, api_key: str = "none") -> openai.AsyncOpenAI:
        """OpenAI's own client of it, without retries."""
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0)

    async def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON."""
        async with self.session.get(self.url + path) as response:
            return response.status, json.loads(await response.read())

    async def post(self, body: Any, **options: Any) -> tuple[int, Any]:
        """Status and JSON of a chat request."""
        options.setdefault("headers", {"Content-Type": "application/json"})
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(f"{self.url}/v1/chat/completions", data=data, **options) as response:
            return response.status, json.loads(await response.read())

    async def connect(self, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A raw connection that has sent a chat request."""
        data = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        return reader, writer


@asynccontextmanager
async def serving(pipeline: ScriptedPipeline | None = None, **server: Any) -> AsyncIterator[Served]:
    """A gateway configured by `server` (as in the YAML) on a free port, stopped at the end."""
    pipeline = pipeline or ScriptedPipeline(["Hel", "lo"])
    listen_socket = socket.create_server(("127.0.0.1", 0))
    port = listen_socket.getsockname()[1]
    stopping = asyncio.Event()
    config = msgspec.convert(server, Server)
    task = asyncio.create_task(
        run(pipeline, config, model_path="models/tiny-omni", listen_socket=listen_socket, stopping=stopping)
    )
    try:
        async with aiohttp.ClientSession() as session:
            yield Served(port, pipeline, session, stopping)
    finally:
        stopping.set()
        await task
