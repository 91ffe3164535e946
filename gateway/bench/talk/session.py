"""One WebSocket session: sends a microphone's sound, and records when the events of each answer arrive."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import aiohttp
from msgspec import Struct

from gateway.bench.talk.microphone import Microphone
from gateway.bench.talk.utterances import RATE, SAMPLE_BYTES
from gateway.bench.timeline import AudioChunk, Failure

# The names of events with sound, in the current API and in its beta version, which some servers still use.
_SOUND = frozenset({"response.output_audio.delta", "response.audio.delta"})
_LARGEST_EVENT = 64 << 20  # bytes


class TalkSettings(Struct, frozen=True, kw_only=True):
    """The settings of sessions.

    Attributes:
        url: Address of the server, with or without ``/v1``.
        speed: Speed of the conversation. With 1, the microphone sends one second of sound per second, and the talker
            listens to one second of sound per second.
        silence_ms: The length of silence that ends a turn. The session sends this setting to the server.
        lengths: Exact numbers of text tokens and of codec frames in each answer; None lets the model end its answers.
            Only this project's server supports the fields that set these numbers.
        timeout: Longest wait for an event, in seconds.
    """

    url: str
    model: str
    api_key: str | None
    voice: str | None
    silence_ms: int
    speed: float
    timeout: float
    lengths: tuple[int, int] | None = None


class Answer(Struct, kw_only=True):
    """The events of one response. Times are by the clock `time.perf_counter`.

    Attributes:
        created: Time at which ``response.created`` arrived.
        item_id: Id of the item with the speech.
        sounds: Each event with sound.
        done: Time at which ``response.done`` arrived; None before that time.
        status: The status in ``response.done``.
        cached_tokens, input_tokens: Numbers from the response's ``usage``; None if the server does not report them.
    """

    id: str
    created: float
    item_id: str | None = None
    sounds: list[AudioChunk] = []
    done: float | None = None
    status: str | None = None
    cached_tokens: int | None = None
    input_tokens: int | None = None
    failure: Failure | None = None

    @property
    def seconds(self) -> float:
        """Seconds of sound that have arrived."""
        return sum(sound.seconds for sound in self.sounds)


class TalkSession:
    """An open session. As a context manager, connects and disconnects.

    Attributes:
        microphone: Sends the talker's sound.
        answers: All responses so far, in order.
        started, stopped: Times at which each ``speech_started`` and each ``speech_stopped`` arrived.
        failure: The reason why the session has failed. It is an error event, a time-out or a closed connection.
    """

    def __init__(self, settings: TalkSettings, http: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._http = http
        self._arrived = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_updated = False
        self.microphone = Microphone(self._send_sound, settings.speed)
        self.answers: list[Answer] = []
        self.started: list[float] = []
        self.stopped: list[float] = []
        self.failure: Failure | None = None

    async def __aenter__(self) -> TalkSession:
        settings = self._settings
        base = settings.url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        self._socket = await self._http.ws_connect(
            f"{base}/v1/realtime",
            params={"model": settings.model},
            headers=headers,
            max_msg_size=_LARGEST_EVENT,
            timeout=aiohttp.ClientWSTimeout(ws_close=5),
        )
        self._tasks.append(asyncio.create_task(self._listen()))
        await self._send({"type": "session.update", "session": _session(settings)})
        await self.wait(lambda: self._is_updated)
        self._tasks.append(asyncio.create_task(self._speak()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._socket.close()

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` returns True or the session has failed. A timeout makes the session fail."""
        try:
            async with asyncio.timeout(self._settings.timeout), self._arrived:
                await self._arrived.wait_for(lambda: condition() or self.failure is not None)
        except TimeoutError:
            self.failure = self.failure or Failure(
                "timeout", f"the expected event did not arrive within {self._settings.timeout:g} s (--timeout)"
            )

    def answer_after(self, moment: float) -> Answer | None:
        """The first response that was created after `moment` and has sound."""
        return next((answer for answer in self.answers if answer.created > moment and answer.sounds), None)

    async def truncate(self, answer: Answer, seconds: float) -> None:
        """Report to the server how much of an answer has been played."""
        if answer.item_id is not None:
            played = int(1000 * min(seconds, answer.seconds))
            await self._send(
                {
                    "type": "conversation.item.truncate",
                    "item_id": answer.item_id,
                    "content_index": 0,
                    "audio_end_ms": played,
                }
            )

    async def _send_sound(self, packet: bytes) -> None:
        await self._send({"type": "input_audio_buffer.append", "audio": base64.b64encode(packet).decode()})

    async def _send(self, event: dict[str, Any]) -> None:
        await self._socket.send_str(json.dumps(event))

    async def _speak(self) -> None:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):  # `_listen` reports a lost connection
            await self.microphone.run()

    async def _listen(self) -> None:
        failure = Failure("connection_closed", "the server closed the connection")
        try:
            async for message in self._socket:
                if message.type is aiohttp.WSMsgType.TEXT:
                    arrived = time.perf_counter()
                    await self._take(json.loads(message.data), arrived)
            failure = Failure("connection_closed", f"the server closed the connection ({self._socket.close_code})")
        except (ValueError, LookupError, TypeError) as error:
            failure = Failure("invalid_event", f"an event does not follow the realtime API: {error!r}")
        await self._fail(failure)

    async def _fail(self, failure: Failure) -> None:
        async with self._arrived:
            self.failure = self.failure or failure
            self._arrived.notify_all()

    async def _take(self, event: dict[str, Any], at: float) -> None:
        kind = event["type"]
        if kind == "error":
            error = event["error"]
            await self._fail(Failure(error.get("code") or error["type"], error["message"], param=error.get("param")))
            return
        async with self._arrived:
            if kind == "session.updated":
                self._is_updated = True
            elif kind == "input_audio_buffer.speech_started":
                self.started.append(at)
            elif kind == "input_audio_buffer.speech_stopped":
                self.stopped.append(at)
            elif kind == "response.created":
                self.answers.append(Answer(id=event["response"]["id"], created=at))
            elif kind in _SOUND:
                answer = self._answer(event["response_id"])
                seconds = len(base64.b64decode(event["delta"])) / SAMPLE_BYTES / RATE
                answer.item_id = event["item_id"]
                answer.sounds = [*answer.sounds, AudioChunk(at, seconds)]
            elif kind == "response.done":
                _end(self._answer(event["response"]["id"]), event["response"], at)
            self._arrived.notify_all()

    def _answer(self, response_id: str) -> Answer:
        return next(answer for answer in reversed(self.answers) if answer.id == response_id)


def _session(settings: TalkSettings) -> dict[str, Any]:
    audio = {"type": "audio/pcm", "rate": RATE}
    detection = {"type": "server_vad", "silence_duration_ms": settings.silence_ms}
    output = {"format": audio} | ({"voice": settings.voice} if settings.voice else {})
    session: dict[str, Any] = {
        "type": "realtime",
        "output_modalities": ["audio"],
        "audio": {"input": {"format": audio, "turn_detection": detection}, "output": output},
    }
    if settings.lengths is not None:
        tokens, frames = settings.lengths
        session |= {
            "ignore_eos": True,
            "max_output_tokens": tokens,
            "stage_sampling": {"talker_ar": {"max_tokens": frames + 1}},
        }
    return session


def _end(answer: Answer, response: dict[str, Any], at: float) -> None:
    answer.done = at
    answer.status = response["status"]
    usage = response.get("usage") or {}
    answer.input_tokens = usage.get("input_tokens")
    answer.cached_tokens = (usage.get("input_token_details") or {}).get("cached_tokens")
    if answer.status == "failed":
        error = (response.get("status_details") or {}).get("error") or {}
        answer.failure = Failure(error.get("code") or "failed", error.get("message") or "the response failed")
