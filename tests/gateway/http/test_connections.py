"""Tests how the server treats raw connections: malformed HTTP, slow clients, and too many connections."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from gateway.http.connections import Connection
from tests.gateway.scripted import HELLO, ScriptedPipeline, Served, serving

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


async def answer(served: Served, sent: bytes) -> tuple[int, dict]:
    """Status and body of the response to these bytes. The server must close the connection after the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(sent)
    text = await reader.read()
    writer.close()
    head, _, body = text.partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"hello\r\n\r\n", 400, "invalid_http"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "invalid_http"),
        (b"GET\r\n\r\n", 400, "invalid_http"),
        (b"GET / HTTP/9.9\r\n\r\n", 400, "invalid_http"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400, "invalid_http"),
        (b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n", 400, "invalid_http"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n", 400, "invalid_http"),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400, "invalid_http"),
        (HEAD + b"Content-Length: x\r\n\r\n", 400, "invalid_http"),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400, "invalid_http"),
        (HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "invalid_http"),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % i for i in range(500)) + b"\r\n", 431, "headers_too_large"),
    ],
)  # fmt: skip
async def test_what_is_no_http_is_answered_in_the_form_of_the_api(sent, status, code):
    async with serving() as served:
        found, body = await answer(served, sent)
        assert (found, body["error"]["code"]) == (status, code)
        assert (await served.post(HELLO))[0] == 200


@pytest.mark.parametrize("expected", [b"100-continue", b"100-Continue", b"something"])
@pytest.mark.parametrize("line", [b"GET /health", b"POST /v1/chat/completions"])
async def test_what_a_client_expects_is_no_obstacle(line, expected):
    data = json.dumps(HELLO).encode()
    async with serving() as served:
        head = (
            line + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nExpect: " + expected
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(head + b"\r\nContent-Length: %d\r\n\r\n" % len(data))
        if expected != b"something":
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(data)
        assert int((await reader.readline()).split()[1]) == 200
        writer.close()


async def test_a_response_names_the_server_and_no_version():
    async with serving() as served:
        for path in ("/health", "/nothing"):
            async with served.session.get(served.url + path) as response:
                assert response.headers["Server"] == "omni-pipeline"
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"hello\r\n\r\n")
        head = (await reader.read()).partition(b"\r\n\r\n")[0]
        assert b"Server: omni-pipeline" in head
        assert b"aiohttp" not in head
        writer.close()


async def test_what_is_no_http_is_logged_in_one_line_that_quotes_nothing(caplog):
    caplog.set_level(logging.DEBUG)
    async with serving() as served:
        await answer(served, b"GET / HTTP/1.1\r\nAuth\x01orization: Bearer secret-key\r\n\r\n")
    [record] = [record for record in caplog.records if "malformed HTTP" in record.getMessage()]
    assert (record.levelno, record.exc_info) == (logging.INFO, None)
    assert "secret-key" not in caplog.text


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /heal"],
    ids=["nothing", "half a line", "no end of the head", "a second request without its end"],
)
async def test_a_head_that_does_not_come_closes_the_connection(sent):
    async with serving(limits={"idle_seconds": 0.1}) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(sent)
        answers = await reader.read()
        assert answers.count(b"HTTP/1.1 ") == sent.count(b"\r\n\r\n")
        writer.close()


async def test_a_head_that_trickles_in_does_not_keep_the_connection_open():
    async with serving(limits={"idle_seconds": 0.2}) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)

        async def trickle():
            writer.write(b"GET / HTTP/1.1\r\n")
            while True:
                writer.write(b"X: y\r\n")
                await asyncio.sleep(0.01)

        trickling = asyncio.create_task(trickle())
        # The server closes its socket before it has read all data, so the connection may be reset.
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        trickling.cancel()
        writer.close()


async def test_a_body_that_trickles_in_is_408():
    async with serving(limits={"receive_seconds": 0.2}) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(HEAD + b"Content-Length: 1000000\r\n\r\n")

        async def trickle():
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.01)

        trickling = asyncio.create_task(trickle())
        assert (await reader.readline()).split()[1] == b"408"
        assert b'"request_timeout"' in await reader.readuntil(b"}}")
        trickling.cancel()
        writer.close()


async def test_a_request_in_progress_is_not_idle():
    pipeline = ScriptedPipeline()
    async with serving(pipeline, limits={"idle_seconds": 0.05}) as served:
        asked = asyncio.create_task(served.post(HELLO))
        request_id = await pipeline.submitted.get()
        await asyncio.sleep(0.2)
        pipeline.say_all(request_id, ["late"])
        assert (await asked)[0] == 200


async def test_more_connections_than_there_may_be_are_refused_and_come_in_later():
    async with serving(limits={"connections": 2}) as served:
        first = await asyncio.open_connection("127.0.0.1", served.port)
        second = await asyncio.open_connection("127.0.0.1", served.port)
        for _, writer in (first, second):
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        for reader, _ in (first, second):
            await reader.readline()
        status, body = await answer(served, b"")
        assert (status, body["error"]["code"]) == (503, "too_many_connections")
        for _, writer in (first, second):
            writer.close()
            await writer.wait_closed()
        while (await answer_or_refusal(served)) == 503:
            pass
        assert (await served.post(HELLO))[0] == 200


async def answer_or_refusal(served: Served) -> int:
    return (await answer(served, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))[0]


def test_a_client_that_leaves_while_it_is_written_to_is_no_error(caplog):
    with pytest.raises(ConnectionResetError):
        Connection.handle_error(None, None, 500, ConnectionResetError("Cannot write to closing transport"))
    assert caplog.records == []


class Clients:
    """Clients of several addresses, whose connections stay open until the end of the test."""

    ASK = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"

    def __init__(self, served: Served) -> None:
        self._port = served.port
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, address: str, sent: bytes) -> asyncio.StreamReader:
        """A connection from `address` that has sent these bytes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(address, 0))
        writer.write(sent)
        self._writers.append(writer)
        return reader

    async def status(self, address: str) -> int:
        """The status of a health check in a new connection from `address`."""
        return int((await (await self.connect(address, self.ASK)).readline()).split()[1])

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def clients(pipeline: ScriptedPipeline | None = None, **options) -> AsyncIterator[Clients]:
    async with serving(pipeline, **options) as served:
        await served.ready()
        await served.session.close()  # otherwise, the connection of this session would count too
        found = Clients(served)
        yield found
        found.close()


@pytest.mark.parametrize(
    "sent", [b"", b"GET /heal", Clients.ASK], ids=["nothing", "half a head", "a request that is over"]
)
async def test_an_address_that_holds_all_connections_gives_way(sent):
    async with clients(limits={"connections": 8}) as found:
        for _ in range(8):
            reader = await found.connect("127.0.0.2", sent)
            if sent == Clients.ASK:
                await reader.readline()
        assert [await found.status("127.0.0.3") for _ in range(6)] == [200] * 4 + [503] * 2
        assert [await found.status("127.0.0.4") for _ in range(4)] == [200] * 2 + [503] * 2


async def test_requests_in_progress_do_not_give_way():
    pipeline = ScriptedPipeline()
    async with clients(pipeline, limits={"connections": 4}) as found:
        data = json.dumps(HELLO).encode()
        request = HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data
        readers = [await found.connect("127.0.0.2", request) for _ in range(4)]
        ids = [await pipeline.submitted.get() for _ in readers]
        assert await found.status("127.0.0.3") == 503
        for request_id in ids:
            pipeline.say_all(request_id, ["fine"])
        assert [(await reader.readline()).split()[1] for reader in readers] == [b"200"] * 4


async def test_a_request_that_waits_behind_another_stops_the_reading_of_more():
    pipeline = ScriptedPipeline()
    many, size = 20, 200_000
    fields = b"".join(b"X-%d: %s\r\n" % (number, b"x" * 8000) for number in range(size // 8000))
    async with serving(pipeline, buffers=4096, drain_seconds=0.1) as served:
        reader, writer = await served.connect(HELLO)
        request_id = await pipeline.submitted.get()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        writer.write(many * Clients.ASK.replace(b"\r\n\r\n", b"\r\n" + fields + b"\r\n"))
        left = -1
        while left != writer.transport.get_write_buffer_size():  # the loop ends when the server reads no more data
            left = writer.transport.get_write_buffer_size()
            await asyncio.sleep(0.2)
        assert many * size - left < 4 * size
        pipeline.say_all(request_id, ["fine"])
        for _ in range(1 + many):
            assert b" 200 OK" in await reader.readuntil(b"\r\n\r\n")
        writer.close()
