"""Sends one request, and records how it ended."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

import aiohttp
from msgspec import Struct

from gateway.bench.events import DONE, EventSplitter
from trials.conversations import TrialConversation

# A request that has not ended after this time counts as endless.
PATIENCE_SECONDS = 120.0

End = Literal["answered", "error", "cut", "endless"]


class Outcome(Struct):
    """How a request ended. Times are those of `time.monotonic`.

    Attributes:
        conversation: The name of the conversation.
        sent, ended: The times at which the request was sent and ended.
        end: The way in which the request ended: ``cut`` if the connection broke without an answer or an error,
            ``endless`` if the request took longer than `PATIENCE_SECONDS`.
        status: The HTTP status.
        code, message: The code and the message of the error, if there was one.
        retry_after: The seconds in the Retry-After header, if there was one.
        first: The time at which the first text or sound arrived.
        digest: A digest of the whole answer, if there was one.
    """

    conversation: str
    sent: float
    ended: float = 0.0
    end: End = "cut"
    status: int = 0
    code: str | None = None
    retry_after: float | None = None
    first: float | None = None
    digest: str | None = None
    message: str | None = None


async def send(session: aiohttp.ClientSession, url: str, conversation: TrialConversation) -> Outcome:
    """Post `conversation`, and read the answer until the request ends in any way."""
    outcome = Outcome(conversation.name, sent=time.monotonic())
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await _exchange(session, f"{url}/v1/chat/completions", conversation, outcome)
    except TimeoutError:
        outcome.end = "endless"
    except (aiohttp.ClientError, ConnectionError):
        outcome.end = "cut"
    outcome.ended = time.monotonic()
    return outcome


async def _exchange(
    session: aiohttp.ClientSession, url: str, conversation: TrialConversation, outcome: Outcome
) -> None:
    async with session.post(url, json=conversation.body) as response:
        outcome.status = response.status
        if response.status != 200:
            body = await response.json()
            outcome.end, outcome.code, outcome.message = "error", body["error"]["code"], body["error"]["message"]
            after = response.headers.get("Retry-After")
            outcome.retry_after = None if after is None else float(after)
        elif conversation.streamed:
            await _read_stream(response, outcome)
        else:
            choice = (await response.json())["choices"][0]
            audio = base64.b64decode((choice["message"].get("audio") or {}).get("data", ""))
            _answered(outcome, choice["message"]["content"], audio, choice["finish_reason"])


async def _read_stream(response: aiohttp.ClientResponse, outcome: Outcome) -> None:
    text, audio, reason = "", bytearray(), None
    async for event in events(response.content):
        if event == DONE:
            _answered(outcome, text, bytes(audio), reason)
            return
        data = json.loads(event)
        if "error" in data:
            outcome.end, outcome.code, outcome.message = "error", data["error"]["code"], data["error"]["message"]
            return
        for choice in data["choices"]:
            piece = choice["delta"].get("content") or ""
            sound = base64.b64decode((choice["delta"].get("audio") or {}).get("data", ""))
            if (piece or sound) and outcome.first is None:
                outcome.first = time.monotonic()
            text, reason = text + piece, choice["finish_reason"] or reason
            audio += sound


async def events(content: aiohttp.StreamReader) -> AsyncIterator[str]:
    """Yield the data of each server-sent event."""
    splitter = EventSplitter()
    async for received in content.iter_any():
        for data in splitter.feed(received):
            yield data


def _answered(outcome: Outcome, *parts: Any) -> None:
    outcome.end = "answered"
    outcome.digest = hashlib.sha256(repr(parts).encode()).hexdigest()
