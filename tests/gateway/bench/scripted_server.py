"""Provides a server that answers chat completions from a script. The answers have the same structure as the answers of
our server or of a similar server.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import numpy
import soundfile
from aiohttp import web
from msgspec import Struct

# The steps of an answer. A step is a pause in seconds, the JSON of an event, or raw bytes. The connection ends after
# the last step.
Step: TypeAlias = float | dict[str, Any] | bytes


class Refusal(Struct):
    """A response with a status other than 200."""

    status: int
    body: Any


class WholeAnswer(Struct):
    """The body of an answer that is not streamed."""

    body: Any


Script: TypeAlias = Callable[[dict[str, Any]], Sequence[Step] | Refusal | WholeAnswer]
DONE = b"data: [DONE]\n\n"


def wav(seconds: float) -> str:
    file = io.BytesIO()
    soundfile.write(file, numpy.zeros(int(seconds * 24_000), dtype=numpy.float32), 24_000, format="WAV")
    return base64.b64encode(file.getvalue()).decode()


def chunk(delta: dict[str, Any], modality: str = "text", **choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None} | choice], "modality": modality}


def text(words: str) -> dict[str, Any]:
    return chunk({"content": words})


def ours(seconds: float) -> dict[str, Any]:
    """An event with sound, as our server, OpenAI and SGLang-Omni send it."""
    return chunk({"audio": {"id": "audio-1", "data": wav(seconds)}}, "audio")


def in_content(seconds: float) -> dict[str, Any]:
    """An event with sound, as vLLM-Omni sends it."""
    return chunk({"content": wav(seconds)}, "audio")


def ending(tokens: int, reason: str = "length") -> list[Step]:
    """The end of a complete answer."""
    return [chunk({}, finish_reason=reason), {"choices": [], "usage": {"completion_tokens": tokens}}, DONE]


def whole(tokens: int, seconds: float | None = None) -> WholeAnswer:
    """A complete answer that is not streamed, as our server, OpenAI and SGLang-Omni send it."""
    message: dict[str, Any] = {"role": "assistant", "content": "a"}
    if seconds is not None:
        message["audio"] = {"id": "audio-1", "data": wav(seconds), "transcript": "a"}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    return WholeAnswer({"choices": [choice], "usage": {"completion_tokens": tokens}})


class ScriptedServer:
    """Runs `script` for each request.

    Attributes:
        open: Number of requests in progress.
        url: Address of the server.
        bodies: Bodies of the requests, in order.
        headers: Headers of the requests, in order.
        peers: Client addresses of the connections that were used.
        most: Largest number of requests in progress at the same time.
    """

    def __init__(self, script: Script) -> None:
        self._script = script
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.peers: set[Any] = set()
        self.most = 0
        self.open = 0

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "scripted"}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            self.bodies.append(await request.json())
            self.headers.append(dict(request.headers))
            assert request.transport is not None
            self.peers.add(request.transport.get_extra_info("peername"))
            answer = self._script(self.bodies[-1])
            if isinstance(answer, Refusal):
                return web.json_response(answer.body, status=answer.status)
            if isinstance(answer, WholeAnswer):
                return web.json_response(answer.body)
            return await self._stream(request, answer)
        finally:
            self.open -= 1

    async def _stream(self, request: web.Request, steps: Sequence[Step]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for step in steps:
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                await response.write(step if isinstance(step, bytes) else f"data: {json.dumps(step)}\n\n".encode())
        return response


@asynccontextmanager
async def scripted(script: Script | Sequence[Step] | Refusal | WholeAnswer) -> AsyncIterator[ScriptedServer]:
    """A server that answers with `script`. If `script` is a function, the server calls it with the request's body and
    answers with the result.
    """
    server = ScriptedServer(script if callable(script) else lambda _: script)
    app = web.Application(client_max_size=2**26)
    app.router.add_get("/v1/models", server.models)
    app.router.add_post("/v1/chat/completions", server.chat)
    runner = web.AppRunner(app, handler_cancellation=True)  # this setting cancels the handler when the client has left
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = str(site.name)
    try:
        yield server
    finally:
        await runner.cleanup()
