"""On all endpoints, no value of any header that the server reads causes an internal error of the server."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from itertools import product

import pytest

from omni_pipeline.config.schema import Trace
from tests.gateway.scripted import HELLO, Served, serving

ROUTES = [
    "GET /", "GET /health", "GET /metrics", "GET /openapi.json", "GET /v1/models", "GET /v1/models/x", "GET /nothing",
    "DELETE /metrics", "OPTIONS /v1/models", "POST /v1/chat/completions",
]  # fmt: skip
# The endpoints whose handlers read headers.
READERS = ["GET /metrics", "POST /v1/chat/completions"]
# The headers that the server or aiohttp reads, without the headers that give the length of the body.
HEADERS = [
    "Accept", "Accept-Encoding", "Authorization", "Origin", "Access-Control-Request-Method", "Content-Type",
    "Content-Encoding", "Expect", "Range", "If-None-Match", "If-Modified-Since", "X-Request-Id", "traceparent",
    "tracestate", "baggage", "Cookie", "Upgrade", "Host", "X-Forwarded-For",
]  # fmt: skip
FRAMING = ["Content-Length", "Transfer-Encoding", "TE", "Trailer"]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
VALUES = [
    "", ",", ";", "=", ";=;,", '"', '"\\', "\xff\xfe", "\xc3\xa4", "\xe9", "a" * 8000, ";" * 8000, ",=" * 4000,
    "*/*;q=x", "application/json; charset=nonsense", "application/json;;=", "multipart/form-data; boundary=",
    *(
        f"{kind};version={version}"
        for kind in ("text/plain", "application/openmetrics-text")
        for version in ("", "x", "1", "1.x.0", "1.0.0.\xff", "1..0", "9" * 5000, "99.0.0", "1.0.0;escaping=\xff")
    ),
    "-1", "1e3", "0x10", "9" * 30, "chunked", "gzip", "bytes=x-y", "bytes=9-1,-", "Bearer", "Bearer \xff", "Basic \xe9",
    PARENT, PARENT.replace("0", "\xe9"), "a=\xff", ",".join(f"k{number}=v" for number in range(500)),
    "100-continue", "100-continue, \xff", "http://[::1", "http://\xe9/", "null", "%00%ff", "${jndi:ldap://x}",
    "Thu, 99 Jan 1970 00:00:00 GMT", "websocket", "h2c", "localhost", "[::1]:x",
]  # fmt: skip
# Requests with an unusual first line.
LINES = [
    "GET /%ff", "GET /\xff", "GET /\xe9", "GET /v1/models/%ff", "GET /v1/models/\xff", "GET /v1/models/%00%0a",
    "GET //", "GET /v1/models/" + "a" * 7000, "GET ?", "GET /?%ff=\xff", "GET /#\xff", "GET http://[::1", "GET http://\xff/",
    "GET x", "CONNECT x:1", "OPTIONS *", "GET *", "POST /%ff", "X\xff /", "BREW /", "get /", "DELETE /%ff",
]  # fmt: skip


async def ask(served: Served, line: str, headers: dict[str, str]) -> bytes:
    """The complete response to a request. If the method is POST, the request's body is a chat request."""
    body = json.dumps(HELLO).encode() if line.startswith("POST") else b""
    about = {"Content-Type": "application/json", "Content-Length": str(len(body))} if body else {}
    fields = {"Host": "localhost", "Connection": "close"} | about | headers
    head = "\r\n".join([f"{line} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""])
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(head.encode("latin-1") + body)
    async with asyncio.timeout(10):
        response = await reader.read()
    writer.close()
    return response


def check(response: bytes, asked: object) -> None:
    if response.startswith(b"HTTP/1.1 100 Continue"):
        response = response.partition(b"\r\n\r\n")[2]
    head, _, body = response.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert status < 500, asked
    if status >= 400 and status != 417:  # aiohttp answers with its own error only to CONNECT and OPTIONS *
        assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}, asked


@pytest.fixture
def errors(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    """Checks after the test that the log has no errors."""
    yield (found := [])
    found += [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert found == []


@pytest.mark.usefixtures("errors")
@pytest.mark.parametrize("name", HEADERS)
async def test_no_value_of_a_header_is_an_error_of_the_server(name, tmp_path):
    trace = Trace(dir=str(tmp_path))
    async with serving(trace=trace, allowed_origins=["https://a.example"]) as served:
        await served.ready()
        for line, value in [
            *product(READERS, VALUES),
            *product(ROUTES, VALUES[::6]),
            *product(ROUTES, ("\xff", "\xe9")),
        ]:
            check(await ask(served, line, {name: value}), (line, value[:50]))
        assert (await served.post(HELLO))[0] == 200


@pytest.mark.usefixtures("errors")
async def test_no_key_is_an_error_of_the_server():
    async with serving(api_keys=["k\u00e9y"]) as served:
        await served.ready()
        for path, value in product(("/v1/models", "/v1/nothing"), VALUES):
            response = await ask(served, f"GET {path}", {"Authorization": value})
            check(response, value[:50])
            assert b" 401 " in response or b" 431 " in response


@pytest.mark.usefixtures("errors")
@pytest.mark.parametrize("name", FRAMING)
async def test_no_framing_of_a_body_is_an_error_of_the_server(name):
    async with serving(limits={"receive_seconds": 0.05}) as served:
        await served.ready()
        values = [
            *VALUES[:11],
            "-1",
            "1e3",
            "0x10",
            "9" * 30,
            "chunked",
            "gzip, chunked",
            "\xffchunked",
            "identity",
            "+5",
        ]
        for value in values:
            check(await ask(served, "POST /v1/chat/completions", {name: value}), value[:50])
        assert (await served.post(HELLO))[0] == 200


@pytest.mark.usefixtures("errors")
async def test_no_request_line_is_an_error_of_the_server():
    async with serving() as served:
        await served.ready()
        for line, expected in product(LINES, (None, "\xff", "x", "100-continue")):
            headers = {"Expect": expected} if expected else {}
            check(await ask(served, line, headers), (line[:50], expected))
