"""Sends sound like a microphone: one packet of 20 ms after the other, without a gap."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from msgspec import Struct

from gateway.bench.talk.utterances import RATE, SAMPLE_BYTES, Utterance

PACKET_SECONDS = 0.02
_PACKET_BYTES = int(RATE * PACKET_SECONDS) * SAMPLE_BYTES


class Spoken(Struct, frozen=True):
    """The times at which an utterance was or will be spoken, by the clock `time.perf_counter`.

    Attributes:
        first_voiced, last_voiced: The time of the first and the last voiced sample.
        ended: The end of the recording.
    """

    first_voiced: float
    last_voiced: float
    ended: float


class Microphone:
    """Sends the utterances that are given to `say`, and silence at all other times.

    Args:
        send: Sends one packet of pcm16.
        speed: Seconds of sound to send per second. With 1, the sound is sent in real time.
    """

    def __init__(self, send: Callable[[bytes], Awaitable[None]], speed: float = 1.0) -> None:
        self._send = send
        self._speed = speed
        self._waiting = bytearray()
        self._packets = 0
        self._began = time.perf_counter()

    def say(self, utterance: Utterance) -> Spoken:
        """Speak an utterance. The utterance begins with the next packet, or after the earlier utterances that are not
        finished yet.
        """
        seconds = self._packets * PACKET_SECONDS + len(self._waiting) / SAMPLE_BYTES / RATE
        self._waiting += utterance.pcm
        begin = self._began + seconds / self._speed
        return Spoken(
            begin + utterance.first_voiced / self._speed,
            begin + utterance.last_voiced / self._speed,
            begin + utterance.seconds / self._speed,
        )

    async def run(self) -> None:
        """Send packets until cancelled. Each packet is sent at the time at which a microphone would have recorded the
        last sample of the packet.
        """
        self._began = time.perf_counter()
        while True:
            due = self._began + (self._packets + 1) * PACKET_SECONDS / self._speed
            await asyncio.sleep(due - time.perf_counter())
            packet = bytes(self._waiting[:_PACKET_BYTES])
            del self._waiting[:_PACKET_BYTES]
            self._packets += 1
            await self._send(packet.ljust(_PACKET_BYTES, b"\0"))
