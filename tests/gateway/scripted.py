"""Provides a pipeline whose answers a test defines, and a gateway in front of this pipeline. Clients reach the gateway
over real sockets.
"""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy
import openai

from gateway.serving.server import run
from omni_pipeline.config.schema import Server, Trace
from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.contract.prompt_chain import UNKNOWN_PROMPT, PromptChain
from omni_pipeline.errors import ErrorInfo, OmniError
from omni_pipeline.os_process import ProcessUsage
from omni_pipeline.supervision.bindings import RouteReport
from omni_pipeline.supervision.remote_hosts import HostReport
from omni_pipeline.supervision.worker_state import ReplicaReport, WorkerReport
from omni_pipeline.wire.counters import EdgeStats
from omni_pipeline.wire.messages import Chunk, Claim, End, Failed, Paused, StageStats, Work
from omni_pipeline.wire.tensor import Tensor
from omni_pipeline.wire.trace_notes import Notes
from stages.messages import (
    AudioDelta,
    AudioDone,
    ChatRequest,
    EntryRequest,
    PieceRequest,
    Recording,
    RecordingCut,
    SpeechRequest,
    TextDelta,
    TextDone,
    TokenLogprob,
    TokenText,
    TokenUsage,
    ToolCall,
)

HELLO = {"messages": [{"role": "user", "content": "Hello?"}]}
USAGE = TokenUsage(prompt_tokens=11, completion_tokens=3, cached_tokens=4, media_tokens={"image": 5, "audio": 2})


# The voices in the configuration of a checkpoint that speaks. They are deliberately not in alphabetical order.
SPEAKER_CONFIG = {"talker_config": {"speaker_id": {"chelsie": 7, "ethan": 8, "aiden": 9}}}


def tone(samples: int, start: int = 0) -> numpy.ndarray:
    """A 440 Hz tone with overtones: float32 [`samples`] at 24 kHz. It is a part of a longer tone, and begins at the
    sample `start` of the longer tone.
    """
    time = numpy.arange(start, start + samples) / 24_000
    wave = 0.4 * numpy.sin(880 * numpy.pi * time) + 0.2 * numpy.sin(5000 * numpy.pi * time * (1 + time / 5))
    return wave.astype(numpy.float32)


class ScriptedPipeline:
    """A pipeline that answers every request with `answer`, in each choice. If `answer` is None, the test sends the
    answers.

    A request for speech gets the pieces of sound in `voice` after the text. Each piece counts as 2 codec frames.

    A recording is cut at the times in `ends`, and each of its pieces is answered with `answer`.

    Attributes:
        ends: Times in seconds at which the pieces of recordings end; None if the test sends them.
        language: Language of the text of recordings.
        submitted: Ids of requests in order of arrival, without those of the warm-up.
        aborted: Ids of requests, in the order in which they were aborted.
        released: Ids of requests, in the order in which their answers were complete.
        forgets: Whether an aborted request is forgotten at once. Otherwise, `unforgotten` maps the request's id to a
            function, and the request is forgotten when the test calls this function.
        claimed, paused: The functions that receive claims and pauses, as set by `budget` and `pace`.
        refusal: Error that `submit` raises, if set.
        working: Event that a test clears to make requests wait for stages.
        waiting: The stages that each request has waited for.
        warmups: Ids of warm-up requests in order of arrival.
        workers: The workers, as `/health` shows them.
        compares_prompts: Whether `submit` gets the chains of prompts. `chains` maps the id of a request to its chain.
        counted: Tokens of each prompt, and how many of them were in a cache, as reported with the answer.
    """

    def __init__(self, answer: list[str] | None = None, voice: list[numpy.ndarray] | None = None) -> None:
        self.answer = answer
        self.voice = voice or []
        self.ends: list[float] | None = [2.5]
        self.language: str | None = None
        self.answers_warmup = True
        self.forgets = True
        self.unforgotten: dict[str, Callable[[], None]] = {}
        self.refusal: ErrorInfo | None = None
        self.bodies: dict[str, EntryRequest] = {}
        self.submitted: asyncio.Queue[str] = asyncio.Queue()
        self.aborted: asyncio.Queue[str] = asyncio.Queue()
        self.released: list[str] = []
        self.problem: str | None = None
        self.waiting: asyncio.Queue[Collection[str]] = asyncio.Queue()
        self.warmups: asyncio.Queue[str] = asyncio.Queue()
        self.working = asyncio.Event()
        self.working.set()
        self.workers: dict[str, WorkerReport] = {}
        self.stats: Mapping[str, StageStats] = {}
        self.edges: list[EdgeStats] = []
        self.restarts: Mapping[str, int] = {}
        self.pids: Mapping[str, int] = {}
        self.usages: Mapping[str, ProcessUsage] = {}
        self.hosts: Sequence[HostReport] = ()
        self.connections_lost = 0
        self.degraded: str | None = None
        self.warm = False
        self.replicas: Sequence[ReplicaReport] = ()
        self.routes: Sequence[RouteReport] = ()
        self.compares_prompts = False
        self.chains: dict[str, PromptChain] = {}
        self.counted: dict[str, tuple[int, int]] = {}
        self._cold = asyncio.Event()
        self._cold.set()
        self._lost: Callable[[frozenset[str], ErrorInfo, Collection[str] | None], None]
        self.deliver: Callable[[Work | Failed], None]
        self._counts: dict[tuple[str, str], int] = {}

    def connect(
        self,
        deliver: Callable[[Work | Failed], None],
        lost: Callable[[frozenset[str], ErrorInfo, Collection[str] | None], None],
    ) -> None:
        self.deliver, self._lost = deliver, lost

    def lost(self, stages: frozenset[str], error: ErrorInfo, requests: Collection[str] | None = None) -> None:
        """Lose the worker of `stages`. Until the next answer to a warm-up request, the pipeline is not warm."""
        self.warm = False
        self._cold.set()
        self._lost(stages, error, requests)

    async def cold(self) -> Mapping[str, int]:
        await self.working.wait()
        await self._cold.wait()
        return {}

    def count_prompt(self, request_id: str, prompt_tokens: int, cached_tokens: int) -> None:
        self.counted[request_id] = (prompt_tokens, cached_tokens)

    def live_replicas(self, stage: str) -> int:
        return 1

    @property
    def replica_stats(self) -> Iterable[tuple[str, int, StageStats]]:
        return [(name, 0, stats) for name, stats in self.stats.items()]

    def release(self, request_id: str) -> None:
        self.released.append(request_id)
        if request_id.startswith("warm-up"):
            self.warm = True
            self._cold.clear()

    def budget(self, claimed: Callable[[Claim, Callable[[], None]], None]) -> None:
        self.claimed = claimed

    def pace(self, paused: Callable[[Paused, Callable[[], None]], None]) -> None:
        self.paused = paused

    def trace(self, noted: Callable[[Notes], None]) -> None:
        self.noted = noted

    async def wait_for(self, stages: Collection[str] | None, seconds: float | None) -> None:
        if stages is not None:
            self.waiting.put_nowait(stages)
        await self.working.wait()

    def submit(
        self,
        request_id: str,
        body: Any,
        stages: Collection[str] | None = None,
        *,
        beside: str = "",
        warming: Mapping[str, int] | None = None,
        chain: PromptChain = UNKNOWN_PROMPT,
    ) -> None:
        if self.refusal is not None:
            raise OmniError(self.refusal)
        self.bodies[request_id] = body
        if request_id.startswith("warm-up"):
            self.warmups.put_nowait(request_id)
            if self.answers_warmup:
                asyncio.get_running_loop().call_soon(self.say_all, request_id, [])
            return
        self.chains[request_id] = chain
        self.submitted.put_nowait(request_id)
        if isinstance(body, Recording):
            if self.ends is not None:
                asyncio.get_running_loop().call_soon(self.cut, request_id, self.ends)
        elif self.answer is not None:
            asyncio.get_running_loop().call_soon(self.say_all, request_id, self.answer)

    def abort(self, request_id: str, stages: frozenset[str], forgotten: Callable[[], None]) -> None:
        self.aborted.put_nowait(request_id)
        if self.forgets:
            forgotten()
        else:
            self.unforgotten[request_id] = forgotten

    def say(self, request_id: str, text: str, logprobs: list[TokenLogprob] | None = None, *, choice: int = 0) -> None:
        """Send one piece of text, as the stage `decode` does."""
        self._send(request_id, "decode", TextDelta(text, logprobs or [], choice=choice))

    def call(self, request_id: str, *calls: ToolCall, text: str = "", **fields: Any) -> None:
        """Send calls, after a piece of text, as the stage `decode` does."""
        self._send(request_id, "decode", TextDelta(text, calls=list(calls), **fields))

    def speak(self, request_id: str, samples: numpy.ndarray) -> None:
        """Send one piece of sound, as the stage `code2wav` does."""
        self._send(request_id, "code2wav", AudioDelta(Tensor.of(samples)))

    def cut(self, request_id: str, ends: list[float]) -> None:
        """Send the pieces of a recording, as the stage `preprocessing` does."""
        self._send(request_id, "preprocessing", RecordingCut(ends, self.language))

    def lose(self, request_id: str, source: str = "decode") -> None:
        """Count one chunk as sent, but do not deliver it."""
        self._count(request_id, source)

    def finish(self, request_id: str, reason: Any = "stop", *, choice: int = 0, last: bool = True) -> None:
        """Send the end of the text of a choice. If `last` is true, this is the last message of the stage `decode` for
        the request.
        """
        send = self._end if last else self._send
        send(request_id, "decode", TextDone(reason, USAGE, choice))

    def hush(self, request_id: str, frames: int = 0, reason: Any = "stop") -> None:
        """Send the end of the speech. If a text is read aloud, each of its characters counts as a token."""
        body = self.bodies[request_id]
        read = len(body.text) if isinstance(body, SpeechRequest) else 0
        self._end(request_id, "code2wav", AudioDone(frames, reason, read))

    def say_all(self, request_id: str, pieces: list[str]) -> None:
        body = self.bodies[request_id]
        choices = range(body.text.choices if isinstance(body, ChatRequest | PieceRequest) else 0)
        for piece in pieces:
            for choice in choices:
                self.say(request_id, piece, choice=choice)
        for choice in choices:
            self.finish(request_id, choice=choice, last=choice == choices[-1])
        if isinstance(body, ChatRequest | SpeechRequest) and body.speech is not None:
            for samples in self.voice:
                self.speak(request_id, samples)
            self.hush(request_id, 2 * len(self.voice))

    def _send(self, request_id: str, source: str, body: Any) -> None:
        self.deliver(Chunk(request_id, source, COLLECTOR, body, seq=self._count(request_id, source)))

    def _end(self, request_id: str, source: str, body: Any) -> None:
        count = self._counts.get((request_id, source), 0)
        self.deliver(End(request_id, source, COLLECTOR, body, count=count))

    def _count(self, request_id: str, source: str) -> int:
        before = self._counts.get((request_id, source), 0)
        self._counts[request_id, source] = before + 1
        return before

    def fail(self, request_id: str, error: ErrorInfo, source: str = "preprocessing") -> None:
        """Send the failure of the request in stage `source`."""
        self.deliver(Failed(request_id, source, error))


def token(text: str, logprob: float = -0.5, top: tuple[tuple[str, float], ...] = ()) -> TokenLogprob:
    """A generated token, with its log-probability and the log-probabilities of alternative tokens."""
    return TokenLogprob(
        TokenText(text, list(text.encode()), logprob), [TokenText(t, list(t.encode()), p) for t, p in top]
    )


class Served:
    """A running gateway, with methods that send requests to it."""

    def __init__(
        self,
        port: int,
        pipeline: ScriptedPipeline,
        session: aiohttp.ClientSession,
        stopping: asyncio.Event,
        task: asyncio.Task[None],
    ) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.pipeline = pipeline
        self.session = session
        self.stopping = stopping
        self.task = task

    def openai(self, api_key: str = "none") -> openai.AsyncOpenAI:
        """OpenAI's own client for the gateway, without retries."""
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0)

    async def ready(self) -> None:
        """Wait until the warm-up request has been answered."""
        status = "starting"
        while status == "starting":
            status = (await self.get("/health"))[1]["status"]

    async def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of the response."""
        async with self.session.get(self.url + path) as response:
            return response.status, json.loads(await response.read())

    async def post(self, body: Any, **options: Any) -> tuple[int, Any]:
        """Status and JSON of a chat request."""
        options.setdefault("headers", {"Content-Type": "application/json"})
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(f"{self.url}/v1/chat/completions", data=data, **options) as response:
            return response.status, json.loads(await response.read())

    async def read_aloud(self, **fields: Any) -> tuple[int, Any, bytes]:
        """Request that the server reads a text aloud. Returns status, headers and body of the response."""
        async with self.session.post(f"{self.url}/v1/audio/speech", json={"input": "Hello!"} | fields) as response:
            return response.status, response.headers, await response.read()

    async def connect(self, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The reader and the writer of a raw connection over which a chat request has been sent."""
        data = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        return reader, writer


@asynccontextmanager
async def serving(
    pipeline: ScriptedPipeline | None = None,
    *,
    speaks: bool = False,
    trace: Trace | None = None,
    buffers: int | None = None,
    **server: Any,
) -> AsyncIterator[Served]:
    """A gateway on a free port, configured by `server` (as in the YAML). It is stopped at the end.

    Args:
        buffers: Size in bytes of the operating system's buffers of a connection, in each direction; None for the
            system's default.
    """
    pipeline = pipeline or ScriptedPipeline(["Hel", "lo"])
    server.setdefault("allowed_hosts", ["x"])  # the host name in the tests' raw requests
    listen_socket = socket.create_server(("127.0.0.1", 0))
    if buffers is not None:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            # Accepted connections inherit this buffer size.
            listen_socket.setsockopt(socket.SOL_SOCKET, option, buffers)
    port = listen_socket.getsockname()[1]
    stopping = asyncio.Event()
    with tempfile.TemporaryDirectory() as checkpoint:
        (Path(checkpoint) / "config.json").write_text(json.dumps(SPEAKER_CONFIG))
        task = asyncio.create_task(
            run(
                pipeline,
                msgspec.convert(server, Server),
                model_path="models/tiny-omni",
                checkpoint=checkpoint,
                stages=("thinker", "decode", *(("code2wav",) if speaks else ())),
                trace=trace or Trace(),
                listen_socket=listen_socket,
                ready=lambda: None,
                stopping=stopping,
            )
        )
        try:
            async with aiohttp.ClientSession() as session:
                yield Served(port, pipeline, session, stopping, task)
        finally:
            stopping.set()
            with suppress(asyncio.CancelledError):
                await task
