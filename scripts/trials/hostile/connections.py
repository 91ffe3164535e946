"""Attacks through the connection: by headers, by slow reading or writing, by many connections, and by early
disconnects.
"""

from __future__ import annotations

import asyncio
import json
import random

from trials.hostile.client import CHAT, HostileClient, Round, Target, Wire, chat

_SMALL_BUFFER = 1024
_MOST_STALLED = 200


def stalls_in_mid_answer(draw: random.Random, target: Target) -> Round:
    """Attacks the writing of a stream: stops reading after the first event, and stays connected."""
    return _stall(chat("x", stream=True, max_tokens=2000, ignore_eos=True, logprobs=True, top_logprobs=20), b"data:")


def stalls_after_the_answer(draw: random.Random, target: Target) -> Round:
    """Attacks the writing of a whole answer: reads nothing, and stays connected after the answer is complete."""
    return _stall(chat("x", max_tokens=300, ignore_eos=True, logprobs=True, top_logprobs=20), None)


def _stall(body: dict[str, object], mark: bytes | None) -> Round:
    data = json.dumps(body).encode()
    stalled: list[Wire] = []  # keep the connections here, so that they stay open until the siege ends

    async def attack(client: HostileClient) -> None:
        wire = await client.connect(receive_buffer=_SMALL_BUFFER)
        stalled.append(wire)
        await wire.send(client.head(len(data)) + data)
        if mark is not None:
            await wire.read_until(mark)
        client.outcomes["stalled"] += 1
        if len(stalled) > _MOST_STALLED:
            stalled.pop(0).writer.transport.abort()
        await asyncio.sleep(1.0)

    return attack


def slow_senders(draw: random.Random, target: Target) -> Round:
    """Keeps the server waiting for the rest of a request: sends heads and bodies one byte at a time."""

    async def attack(client: HostileClient) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(8):
                tasks.create_task(trickle(client, in_body=bool(number % 2)))

    async def trickle(client: HostileClient, *, in_body: bool) -> None:
        body = json.dumps(chat("x" * 1000)).encode()
        whole = client.head(len(body)) + body
        at = len(whole) - len(body) if in_body else 0
        async with client.connection() as wire:
            try:
                await wire.send(whole[:at])
                while at < len(whole) and not wire.reader.at_eof():
                    await wire.send(whole[at : at + 1])
                    at += 1
                    await asyncio.sleep(0.5)
                answer = await wire.reader.read(4096)
            except ConnectionError:
                answer = b""
        client.note(answer)

    return attack


def hostile_headers(draw: random.Random, target: Target) -> Round:
    """Attacks every route with bad headers, such as names of other hosts and contradictory or invalid body lengths."""
    routes = ["/", "/health", "/metrics", "/openapi.json", "/v1/models", "/v1/models/x", CHAT]
    lines = [
        *(
            f"Accept: {value}"
            for value in ("application/openmetrics-text; version=ü", "text/plain;version=;q=x", ";;,")
        ),
        *(
            f"Accept: application/openmetrics-text;version={value}"
            for value in ("1.0.0.0", "x", "9" * 300, "1;escaping")
        ),
        *(f"Accept: text/plain;version=1.0.0;escaping={value}" for value in ("x", "", "allow-utf-8", "=")),
        *(f"Content-Length: {value}" for value in ("-1", "1e3", "9" * 40, "0x10", "")),
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: gzip, chunked",
        "Content-Type: application/json; charset=\x00",
        "Content-Encoding: gzip",
        "Expect: 200-ok",
        "Range: bytes=0-",
        f"X-Filler: {'x' * 20_000}",
        "\r\n".join(f"X-{number}: 1" for number in range(300)),
        "X-Request-Id: a\tb\x7f",
        "traceparent: 00-00000000000000000000000000000000-0000000000000000-zz",
        "Authorization: Bearer \xff\xfe",
        "Origin: null",
        "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x",
    ]
    hosts = ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1", "a b"]

    async def attack(client: HostileClient) -> None:
        route = client.draw.choice(routes)
        method = client.draw.choice(["GET", "POST", "HEAD", "OPTIONS", "PUT"])
        strange_host = client.draw.random() < 0.3
        host = client.draw.choice(hosts) if strange_host else f"127.0.0.1:{client.port}"
        line = "X-Nothing: 1" if strange_host else client.draw.choice(lines)
        head = f"{method} {route} HTTP/1.1\r\nHost: {host}\r\n{line}\r\nConnection: close\r\n\r\n"
        reply = await client.exchange(head.encode("latin-1", "replace"))
        if strange_host and reply.status == 200:
            client.breaches["a request to another host's name was served"] += 1

    return attack


def connection_flood(draw: random.Random, target: Target) -> Round:
    """Attacks the number of connections: opens as many silent connections as the server allows, again and again."""

    async def attack(client: HostileClient) -> None:
        wires: list[Wire] = []
        try:
            while len(wires) < target.connections:
                wires.append(await client.connect())
                client.outcomes["connected"] += 1
            await asyncio.sleep(1.0)
        finally:
            for wire in wires:
                wire.writer.transport.abort()
        await asyncio.sleep(2.0)

    return attack


def early_leavers(draw: random.Random, target: Target) -> Round:
    """Attacks the end of a request: asks for speech, and disconnects at the first byte of the answer."""
    spoken = chat("Tell me something.", stream=True, max_tokens=60, ignore_eos=True, modalities=["text", "audio"])
    data = json.dumps(spoken | {"talker_max_new_tokens": 200}).encode()

    async def attack(client: HostileClient) -> None:
        async with client.connection() as wire:
            await wire.send(client.head(len(data)) + data)
            await wire.reader.read(1)
        client.outcomes["left at the first byte"] += 1

    return attack


def long_voices(draw: random.Random, target: Target) -> Round:
    """Attacks the talker's KV cache: asks for many long spoken answers at a time."""
    spoken = chat("Tell me a story.", stream=True, max_tokens=8, ignore_eos=True, modalities=["text", "audio"])
    body = spoken | {"talker_max_new_tokens": target.speech_tokens}

    async def attack(client: HostileClient) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(6):
                tasks.create_task(speak(client))

    async def speak(client: HostileClient) -> None:
        reply = await client.post(body)
        if reply.status == 200 and b'"code":"engine"' in reply.tail.replace(b" ", b""):
            client.breaches["speech ended because the talker's memory was full"] += 1

    return attack


def pipelining(draw: random.Random, target: Target) -> Round:
    """Attacks the order of requests: sends 200 requests at once on one connection, and reads the answers late."""
    body = json.dumps(chat("x")).encode()

    async def attack(client: HostileClient) -> None:
        get = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n\r\n".encode()
        requests = [
            get if client.draw.random() < 0.9 else client.head(len(body), close=False) + body for _ in range(200)
        ]
        async with client.connection() as wire:
            wire.writer.write(b"".join(requests))
            client.outcomes["requests sent at once"] += len(requests)
            await asyncio.sleep(0.5)
            answers = b""
            async with asyncio.timeout(60):
                while answers.count(b"HTTP/1.1 ") < len(requests) and (piece := await wire.reader.read(2**16)):
                    answers += piece
        client.outcomes["200 of them"] += answers.count(b"HTTP/1.1 2")
        if b"HTTP/1.1 500" in answers:
            client.breaches["answer 500 in a pipeline"] += 1

    return attack


KINDS = (
    stalls_in_mid_answer,
    stalls_after_the_answer,
    slow_senders,
    hostile_headers,
    connection_flood,
    early_leavers,
    long_voices,
    pipelining,
)
