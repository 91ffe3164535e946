"""Opens realtime sessions with OpenAI's own client, and reads their events."""

from __future__ import annotations

import asyncio
import base64
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy
import openai
import soxr
from openai.resources.realtime.realtime import AsyncRealtimeConnection

PATIENCE = 30.0  # seconds


class Talk:
    """One session. Events are dictionaries, as they were sent."""

    def __init__(self, connection: AsyncRealtimeConnection) -> None:
        self.connection = connection
        self.seen: list[dict[str, Any]] = []

    async def send(self, kind: str, **fields: Any) -> None:
        await self.connection.send({"type": kind, **fields})

    async def next(self) -> dict[str, Any]:
        """The next event. OpenAI's types must accept it."""
        async with asyncio.timeout(PATIENCE):
            event = await self.connection.recv()
        assert event.event_id
        found = event.to_dict(mode="json")
        self.seen.append(found)
        return found

    async def until(self, kind: str) -> dict[str, Any]:
        """The next event of this kind. The test fails if an error event arrives first, unless `kind` is "error"."""
        while True:
            event = await self.next()
            if event["type"] == kind:
                return event
            assert event["type"] != "error", event

    async def error(self) -> dict[str, Any]:
        return (await self.until("error"))["error"]

    async def say(self, text: str, **item: Any) -> dict[str, Any]:
        """Add a message of the user. Returns the item."""
        content = [{"type": "input_text", "text": text}]
        await self.send("conversation.item.create", item={"type": "message", "role": "user", "content": content} | item)
        return (await self.until("conversation.item.done"))["item"]

    async def respond(self, **response: Any) -> list[dict[str, Any]]:
        """Ask for a response. Returns all its events."""
        begin = len(self.seen)
        await self.send("response.create", response=response)
        await self.until("response.done")
        return self.seen[begin:]

    async def append(self, sound: bytes, piece: int = 9_600) -> None:
        for begin in range(0, len(sound), piece):
            await self.send("input_audio_buffer.append", audio=encoded(sound[begin : begin + piece]))

    async def push(self) -> None:
        """Turn the voice detection off."""
        await self.send("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
        await self.until("session.updated")


@asynccontextmanager
async def talking(url: str, *, api_key: str = "none", **options: Any) -> AsyncIterator[Talk]:
    """A session with the server at `url`, after its first event."""
    address = f"{url.replace('http', 'ws', 1)}/v1"
    async with (
        openai.AsyncOpenAI(base_url=f"{url}/v1", websocket_base_url=address, api_key=api_key, max_retries=0) as client,
        client.realtime.connect(model="qwen3-omni", **options) as connection,
    ):
        talk = Talk(connection)
        await talk.until("session.created")
        yield talk


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def sound_of_file(path: Path) -> bytes:
    """The sound of a WAV file as 16 bits at 24 kHz."""
    with wave.open(str(path)) as file:
        rate, samples = file.getframerate(), numpy.frombuffer(file.readframes(file.getnframes()), "<i2")
    return soxr.resample(samples, rate, 24_000).astype("<i2").tobytes()


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The types of the events. Equal types in a row are listed once."""
    found: list[str] = []
    for event in events:
        if not found or found[-1] != event["type"]:
            found.append(event["type"])
    return found


def sound_in(events: list[dict[str, Any]]) -> numpy.ndarray:
    """The sound of a response: int16 [n]."""
    deltas = [event["delta"] for event in events if event["type"] == "response.output_audio.delta"]
    return numpy.frombuffer(b"".join(map(base64.b64decode, deltas)), "<i2")


def text_in(events: list[dict[str, Any]]) -> str:
    """The text or the transcript of a response."""
    wanted = ("response.output_text.delta", "response.output_audio_transcript.delta")
    return "".join(event["delta"] for event in events if event["type"] in wanted)
