"""Contains the code that the realtime programs share: the spoken question, a microphone, and the printing of
results.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from cases import STOCK, URL

RATE = 24_000
PACKET = RATE // 50 * 2  # 20 ms of pcm16
SPEED = 4  # factor by which packets are sent faster than by a real microphone, to save time
SOCKET_URL = f"ws{URL.removeprefix('http')}"
LONG_QUESTION = "What is in the picture?"
LISTENED = 0.8  # seconds of an answer that a listener hears before the interruption
THIS_TOOL = {"type": "function", "name": STOCK["name"]}
"""The tool choice that forces the demo model to call `STOCK`. The model must be forced, because it was not trained to
use tools.
"""
QUESTION_PCM = (Path(__file__).parent / "query_to_cars.pcm").read_bytes()
"""The spoken `cases.QUESTION`, as pcm16 at `RATE`."""

_LONGEST = 40  # maximum seconds for one case


class Microphone:
    """Sends packets of 20 ms until the end of the `async with` block. The packets contain the sound that was passed to
    `say`, or silence.

    Args:
        send: Sends one packet.
    """

    def __init__(self, send: Callable[[bytes], Awaitable[Any]]) -> None:
        self._send = send
        self._waiting = bytearray()

    def say(self, pcm: bytes) -> None:
        self._waiting += pcm

    async def _run(self) -> None:
        while True:
            packet = bytes(self._waiting[:PACKET]).ljust(PACKET, b"\0")
            del self._waiting[:PACKET]
            await self._send(packet)
            await asyncio.sleep(0.02 / SPEED)

    async def __aenter__(self) -> Microphone:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def spoken(text: str, pcm: bytes) -> dict[str, Any]:
    """The result of a spoken answer."""
    return {"text": text, "sound": base64.b64encode(pcm).decode()}


def print_results(cases: dict[str, Callable[[], Awaitable[Any]]]) -> None:
    """Print the result of each case. An exception becomes ``{"error": …}``."""

    async def run() -> dict[str, Any]:
        results: dict[str, Any] = {}
        for name, case in cases.items():
            if len(sys.argv) > 3 and name not in sys.argv[3:]:
                continue
            try:
                async with asyncio.timeout(_LONGEST):
                    results[name] = await case()
            except Exception as error:
                results[name] = {"error": f"{type(error).__name__}: {error}"}
        return results

    print(json.dumps(asyncio.run(run())))
