"""On every endpoint, a request with a host name that is not the server's own is refused. Requests from ordinary clients
are not refused.
"""

from __future__ import annotations

import asyncio
import json
import socket

import openai
import pytest

from gateway.http.hosts import AcceptedHosts
from omni_pipeline.config.schema import Server
from tests.gateway.scripted import HELLO, Served, serving

EVIL = [
    "evil.example", "evil.example:8000", "EVIL.example.", "localhost.evil.example", "127.0.0.1.evil.example",
    "evil-localhost", "evillocalhost", "localhost@evil.example", "evil.example@localhost", "localhost,evil.example",
    "localhost evil.example", "[::1].evil.example", "[evil.example]", "[::1", "::1]", "2130706433", "0x7f.1", "127.1",
    "1.2.3", "localhost:x", "localhost:1:2", "localhost/", "http://localhost", "xn--lcalhost-54a", "machine", "*",
    ".localhost.evil", "\xff", "local\xffhost", "a" * 5000,
]  # fmt: skip
GOOD = [
    "localhost", "localhost:8000", "LocalHost:1", "localhost.", "a.localhost", "127.0.0.1", "127.0.0.1:8000",
    "10.1.2.3", "8.8.8.8:80", "[::1]", "[::1]:8000", "[fe80::1%25eth0]:8000", "[2606:4700::1111]", "", ":8000",
]  # fmt: skip
ROUTES = [
    ("GET", "/"), ("GET", "/health"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny-omni"), ("POST", "/v1/chat/completions"), ("GET", "/nothing"), ("OPTIONS", "/v1/models"),
]  # fmt: skip


async def ask(served: Served, line: str, *headers: str, version: str = "1.1") -> tuple[int, dict]:
    """Status and body of the answer to a request without a body."""
    head = "\r\n".join([f"{line} HTTP/{version}", *headers, "Connection: close", "", ""])
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(head.encode("latin-1"))
    text = await reader.read()
    writer.close()
    head, _, body = text.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if b"application/json" in head else {}


@pytest.mark.parametrize("allowed", [[], ["other.example"]])
async def test_no_endpoint_answers_to_another_name(allowed):
    async with serving(allowed_hosts=allowed, allowed_origins=["*"]) as served:
        for method, path in ROUTES:
            status, body = await ask(served, f"{method} {path}", "Host: evil.example", "Origin: http://evil.example")
            assert (status, body["error"]["code"]) == (403, "host_not_allowed"), path
        assert served.pipeline.submitted.empty()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_every_spelling_of_another_name_is_refused(version):
    async with serving(allowed_hosts=[]) as served:
        for host in EVIL:
            status, body = await ask(served, "GET /v1/models", f"Host: {host}", version=version)
            assert (status, body["error"]["code"]) in ((403, "host_not_allowed"), (400, "invalid_http")), host


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_loopback_names_and_addresses_are_accepted(version):
    async with serving(allowed_hosts=[]) as served:
        for host in GOOD:
            assert (await ask(served, "GET /v1/models", f"Host: {host}", version=version))[0] == 200, host
        assert (await ask(served, "GET /v1/models", f"Host: {socket.gethostname()}:8000", version=version))[0] == 200


async def test_a_client_that_names_no_host_is_accepted():
    async with serving(allowed_hosts=[]) as served:
        assert (await ask(served, "GET /health", version="1.0"))[0] == 200


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://localhost:80/v1/models", "localhost", 200),
        ("http://[::1]:80/v1/models", "localhost", 200),
        ("http://evil.example/v1/models", "localhost", 403),
        ("http://localhost/v1/models", "evil.example", 403),
        ("http://localhost@evil.example/v1/models", "localhost", 403),
    ],
)
async def test_a_whole_url_in_the_request_line_counts_as_well(target, host, status):
    async with serving(allowed_hosts=[]) as served:
        assert (await ask(served, f"GET {target}", f"Host: {host}"))[0] == status


async def test_two_hosts_are_not_http():
    async with serving(allowed_hosts=[]) as served:
        status, _ = await ask(served, "GET /v1/models", "Host: localhost", "Host: evil.example")
        assert status in (400, 403)


async def test_a_name_that_a_proxy_forwards_does_not_count():
    async with serving(allowed_hosts=[]) as served:
        forwarded = ["X-Forwarded-Host: localhost", "Forwarded: host=localhost", "X-Host: localhost"]
        assert (await ask(served, "GET /v1/models", "Host: evil.example", *forwarded))[0] == 403
        forwarded = [header.replace("localhost", "evil.example") for header in forwarded]
        assert (await ask(served, "GET /v1/models", "Host: localhost", *forwarded))[0] == 200


@pytest.mark.parametrize(
    ("listed", "host", "accepted"),
    [
        ("gpu1.example.org", "gpu1.example.org:8000", True),
        ("GPU1.Example.org.", "gpu1.EXAMPLE.org", True),
        ("gpu1.example.org", "gpu2.example.org", False),
        ("gpu1.example.org", "a.gpu1.example.org", False),
        ("*.example.org", "a.example.org", True),
        ("*.example.org", "a.b.example.org", True),
        ("*.example.org", "example.org", False),
        ("*.example.org", "evilexample.org", False),
        ("*.example.org", "a.example.org.evil", False),
        ("*", "anything.example", True),
        ("omni", "omni:8000", True),
        ("omni", "localhost", True),
    ],
)
def test_listed_names_are_accepted(listed, host, accepted):
    assert AcceptedHosts(Server(allowed_hosts=[listed])).accept(host) is accepted


def test_the_name_to_listen_on_is_accepted():
    assert AcceptedHosts(Server(host="gpu1.lan")).accept("gpu1.lan:8000")
    assert not AcceptedHosts(Server(host="0.0.0.0")).accept("gpu1.lan:8000")


async def test_the_error_names_the_host_and_the_setting():
    async with serving(allowed_hosts=[]) as served:
        _, body = await ask(served, "GET /v1/models", "Host: gpu1.lan:8000")
    assert "'gpu1.lan:8000'" in body["error"]["message"]
    assert "--allowed-host" in body["error"]["message"]


async def test_a_key_protects_too_unless_names_are_listed():
    async with serving(api_keys=["right"], allowed_hosts=[]) as served:
        assert (await ask(served, "GET /v1/models", "Host: gpu1.lan", "Authorization: Bearer right"))[0] == 200
        assert (await ask(served, "GET /v1/models", "Host: gpu1.lan"))[0] == 401
    async with serving(api_keys=["right"], allowed_hosts=["gpu2.lan"]) as served:
        assert (await ask(served, "GET /v1/models", "Host: gpu1.lan", "Authorization: Bearer right"))[0] == 403


async def test_the_openai_client_reports_the_refusal():
    async with serving(allowed_hosts=[]) as served, served.openai() as client:
        assert (await served.post(HELLO))[0] == 200
        with pytest.raises(openai.PermissionDeniedError, match="--allowed-host"):
            await client.models.list(extra_headers={"Host": "evil.example"})
