"""Tests that the server frees the places and the connections of clients that do not read.

The sockets have buffers of a few kilobytes on both sides, so that even a page of metrics does not fit.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.answers import sending
from gateway.serving import server
from tests.gateway.scripted import HELLO, ScriptedPipeline, Served, serving, tone

# Short time limits for clients, because the tests wait until the limits have passed.
LIMITS = {"request_seconds": 0.3, "idle_seconds": 0.1, "connections": 1, "requests": 1, "queued": 0}
SPOKEN = {"modalities": ["text", "audio"], "audio": {"format": "wav"}}


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def post(body: dict, path: str = "/v1/chat/completions") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


# Requests for every kind of response. A short response is requested many times at once.
ASKED = {
    "metrics": 30 * get("/metrics"),
    "health": 30 * get("/health"),
    "description": 30 * get("/openapi.json"),
    "wrong path": 30 * get("/nothing"),
    "wrong method": 30 * get("/v1/chat/completions"),
    "wrong body": 30 * post({"n": 99}),
    "whole text": post(HELLO),
    "whole speech": post(HELLO | SPOKEN),
    "streamed text": post(HELLO | {"stream": True}),
    "streamed speech": post(HELLO | SPOKEN | {"stream": True}),
}
OF_CHAT = {"whole text", "whole speech", "streamed text", "streamed speech"}


@pytest.fixture(autouse=True)
def no_grace(monkeypatch):
    monkeypatch.setattr(sending, "GRACE_SECONDS", 0.0)
    # This time is longer than `request_seconds`, so that the test can distinguish the two limits.
    monkeypatch.setattr(server, "GRACE_SECONDS", 0.2)


@asynccontextmanager
async def gateway() -> AsyncIterator[Served]:
    pipeline = ScriptedPipeline(["x" * 100_000], [tone(100_000)])
    async with serving(pipeline, speaks=True, buffers=4096, limits=LIMITS) as served:
        yield served


async def stalled(served: Served, sent: bytes, address: str = "127.0.0.1") -> socket.socket:
    """A connection that has sent these bytes and has the smallest possible receive buffer."""
    client = socket.socket()
    client.bind((address, 0))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", served.port))
    await loop.sock_sendall(client, sent)
    return client


async def answer_to(served: Served, sent: bytes) -> bytes:
    """The response to these bytes. The request is repeated until the only connection and the only place for a request
    are free.
    """
    async with asyncio.timeout(10):
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port, local_addr=("127.0.0.3", 0))
            writer.write(sent.replace(b"Host: x", b"Host: x\r\nConnection: close"))
            answer = await reader.read()
            writer.close()
            if answer.split()[1] == b"200":
                return answer
            assert answer.split()[1] in {b"429", b"503"}
            await asyncio.sleep(0.02)


async def free_again(served: Served) -> None:
    """Wait until the only connection and the only place for a request are free again."""
    await answer_to(served, post(HELLO | {"max_tokens": 1}))


@pytest.mark.parametrize("kind", ASKED)
async def test_a_client_that_reads_nothing_is_cut_off(kind):
    async with gateway() as served:
        client = await stalled(served, ASKED[kind])
        await free_again(served)
        if kind in OF_CHAT:
            async with served.session.get(f"{served.url}/metrics") as response:
                assert 'omni_errors_total{code="request_timeout"} 1.0' in await response.text()
        client.close()


@pytest.mark.parametrize("kind", ["description", "whole speech", "streamed text"])
async def test_a_client_that_reads_byte_by_byte_is_cut_off(kind):
    async with gateway() as served:
        client = await stalled(served, ASKED[kind])

        async def sip() -> None:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(10):
                while await loop.sock_recv(client, 1):  # noqa: ASYNC110 - the test is a slow reader
                    await asyncio.sleep(0.01)

        sipping = asyncio.create_task(sip())
        await free_again(served)
        sipping.cancel()
        client.close()


@pytest.mark.parametrize("kind", ["description", "whole speech", "streamed text"])
async def test_a_client_that_closes_one_half_and_reads_no_more_is_cut_off(kind):
    async with gateway() as served:
        client = await stalled(served, ASKED[kind])
        await asyncio.get_running_loop().sock_recv(client, 1)
        client.shutdown(socket.SHUT_WR)
        await free_again(served)
        client.close()


@pytest.mark.parametrize("kind", ["description", "whole speech", "streamed text"])
async def test_a_client_that_reads_late_gets_everything(kind):
    limits = LIMITS | {"request_seconds": 60}
    async with serving(
        ScriptedPipeline(["x" * 100_000], [tone(100_000)]), speaks=True, buffers=4096, limits=limits
    ) as served:
        client = await stalled(served, ASKED[kind])
        await asyncio.sleep(0.3)  # this is longer than `idle_seconds`, but a connection with unread bytes is not idle
        loop = asyncio.get_running_loop()
        received = b""
        while piece := await loop.sock_recv(client, 1 << 20):
            received += piece
        assert received.count(b"HTTP/1.1 200 OK") == ASKED[kind].count(b"HTTP/1.1")
        assert received.endswith(b"0\r\n\r\n" if kind == "streamed text" else b"}")
        client.close()


async def test_an_address_that_does_not_read_gives_way_to_others():
    limits = LIMITS | {"request_seconds": 60, "connections": 4}
    async with serving(buffers=4096, limits=limits) as served:
        found = [await stalled(served, ASKED["description"], "127.0.0.2") for _ in range(4)]
        for client in found:
            # At this point, the first of the responses has begun.
            assert await asyncio.get_running_loop().sock_recv(client, 1)
        assert b"200 OK" in await answer_to(served, get("/health"))
        for client in found:
            client.close()
