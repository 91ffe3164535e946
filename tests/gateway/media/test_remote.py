"""Tests downloads from a real web server: redirects, refusals, and limits of size and time."""

from __future__ import annotations

import asyncio
import gzip
import socket
from ipaddress import ip_address

import pytest
from aiohttp import web

from gateway.media.intake import Budget, Intake
from gateway.media.names import Names
from gateway.media.remote import Downloader
from omni_pipeline.config.schema import MediaPolicy
from omni_pipeline.errors import OmniError
from tests.gateway.media.media_server import listening

PICTURE = bytes(range(256)) * 40


class Site:
    """A web server on a free port of this machine.

    Attributes:
        seen: Path and headers of each request.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.redirects: dict[str, str] = {}
        self.released = asyncio.Event()
        self.port = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((request.path, dict(request.headers)))
        if request.path in self.redirects:
            return web.Response(status=302, headers={"Location": self.redirects[request.path]})
        match request.path:
            case "/picture":
                return web.Response(body=PICTURE)
            case "/compressed":
                return web.Response(body=gzip.compress(bytes(10_000_000)), headers={"Content-Encoding": "gzip"})
            case "/endless":
                response = web.StreamResponse()
                await response.prepare(request)
                while True:
                    await response.write(bytes(1000))
            case "/silent":
                response = web.StreamResponse()
                await response.prepare(request)
                await self.released.wait()
                return response
            case "/cut":
                response = web.StreamResponse(headers={"Content-Length": "1000"})
                await response.prepare(request)
                await response.write(b"x")
                request.transport.close()
                return response
        return web.Response(status=404)


@pytest.fixture
async def site():
    found = Site()
    async with listening(found.answer) as found.port:
        yield found
        found.released.set()


def downloader(site: Site, *allowed: str, resolver=None, **policy) -> Downloader:
    """A downloader that may fetch from `site` under the site's address and under the names in `allowed`."""
    policy.setdefault("allowed_domains", [f"127.0.0.1:{site.port}", *allowed])
    return Downloader(MediaPolicy(**policy), resolver or here)


async def here(host: str, port: int, client: str):
    """A resolver that gives an address of this machine for every host name."""
    return [ip_address("127.0.0.1")]


async def refused(fetching) -> tuple[int, str | None]:
    with pytest.raises(OmniError) as caught:
        await fetching
    assert caught.value.info.param == "images[0]"
    return caught.value.info.status, caught.value.info.code


async def fetch(loader: Downloader, url: str, most: int = 1_000_000) -> bytearray:
    intake = Intake("images[0]", most, Budget(most, lambda size: None))
    await loader.fetch(url, intake, param="images[0]", client="a client")
    return intake.data


async def test_content_is_fetched(site):
    assert await fetch(downloader(site), f"http://127.0.0.1:{site.port}/picture") == PICTURE


async def test_a_host_is_resolved_once_for_check_and_connection(site):
    asked = []

    async def resolver(host, port, client):
        asked.append((host, port))
        return await here(host, port, client)

    loader = downloader(site, "media.example", resolver=resolver)
    assert await fetch(loader, f"http://media.example:{site.port}/picture") == PICTURE
    assert asked == [("media.example", site.port)]
    assert site.seen[0][1]["Host"] == f"media.example:{site.port}"


async def test_nothing_is_sent_that_identifies_the_server_or_invites_compression(site):
    await fetch(downloader(site), f"http://127.0.0.1:{site.port}/picture")
    headers = site.seen[0][1]
    assert headers["Accept-Encoding"] == "identity"
    assert not {"Authorization", "Cookie", "Referer"} & headers.keys()


async def test_redirects_are_followed_relative_ones_too(site):
    site.redirects = {"/a": "/b", "/b": f"http://127.0.0.1:{site.port}/picture"}
    assert await fetch(downloader(site), f"http://127.0.0.1:{site.port}/a") == PICTURE
    assert [path for path, _ in site.seen] == ["/a", "/b", "/picture"]


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("http://169.254.169.254/latest/meta-data/", "media_not_allowed"),
        ("http://10.0.0.1/", "media_not_allowed"),
        ("http://[::1]/", "media_not_allowed"),
        ("http://other.example/", "media_not_allowed"),
        ("http://2130706433/", "invalid_url"),
        ("http://user@media.example/", "invalid_url"),
        ("file:///etc/passwd", "invalid_url"),
        ("data:image/png;base64,AAAA", "invalid_url"),
        ("ftp://media.example/", "invalid_url"),
        ("http://[", "invalid_url"),
    ],
)
async def test_a_redirect_is_checked_like_the_first_address(site, location, code):
    site.redirects = {"/a": location}
    assert await refused(fetch(downloader(site), f"http://127.0.0.1:{site.port}/a")) == (400, code)
    assert len(site.seen) == 1


async def test_redirects_are_bounded(site):
    site.redirects = {"/a": "/a"}
    loader = downloader(site, max_redirects=3)
    assert await refused(fetch(loader, f"http://127.0.0.1:{site.port}/a")) == (400, "media_fetch_failed")
    assert len(site.seen) == 4


@pytest.mark.parametrize("answers", [["10.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::1"], ["::ffff:10.0.0.1"]])
async def test_a_name_with_a_private_address_among_its_answers_is_refused(site, answers):
    async def resolver(host, port, client):
        return [ip_address(answer) for answer in answers]

    loader = downloader(site, allowed_domains=[], resolver=resolver)
    assert await refused(fetch(loader, "http://media.example/")) == (400, "media_not_allowed")


async def test_localhost_is_refused_by_what_it_resolves_to():
    loader = Downloader(MediaPolicy(), Names().resolve)
    assert await refused(fetch(loader, "http://localhost:8008/")) == (400, "media_not_allowed")


@pytest.mark.parametrize("most", [len(PICTURE) - 1, 0])
async def test_a_length_that_is_announced_too_large_is_refused(site, most):
    url = f"http://127.0.0.1:{site.port}/picture"
    assert await refused(fetch(downloader(site), url, most)) == (413, "media_too_large")


async def test_content_is_taken_up_to_the_limit(site):
    assert await fetch(downloader(site), f"http://127.0.0.1:{site.port}/picture", len(PICTURE)) == PICTURE


async def test_content_without_an_announced_length_is_cut_at_the_limit(site):
    url = f"http://127.0.0.1:{site.port}/endless"
    assert await refused(fetch(downloader(site), url)) == (413, "media_too_large")


async def test_a_compressed_answer_is_refused_unopened(site):
    url = f"http://127.0.0.1:{site.port}/compressed"
    assert await refused(fetch(downloader(site), url)) == (400, "media_fetch_failed")


@pytest.mark.parametrize("path", ["/missing", "/cut"])
async def test_a_failing_server_fails_the_request(site, path):
    url = f"http://127.0.0.1:{site.port}{path}"
    assert await refused(fetch(downloader(site), url)) == (400, "media_fetch_failed")


async def test_a_refused_connection_fails_the_request(site):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    loader = downloader(site, f"127.0.0.1:{port}")
    assert await refused(fetch(loader, f"http://127.0.0.1:{port}/")) == (400, "media_fetch_failed")


async def test_a_name_that_does_not_resolve_fails_the_request(site):
    async def resolver(host, port, client):
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    loader = downloader(site, "media.example", resolver=resolver)
    assert await refused(fetch(loader, "http://media.example/")) == (400, "media_fetch_failed")


async def test_time_is_bounded(site):
    loader = downloader(site, fetch_seconds=0.1)
    url = f"http://127.0.0.1:{site.port}/silent"
    assert await refused(fetch(loader, url)) == (400, "media_fetch_timeout")
