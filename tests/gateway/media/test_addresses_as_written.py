"""A download sends the path and the query of a URL unchanged, byte for byte. It does the same with the URL of a
redirect.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator
from ipaddress import ip_address

import pytest

from gateway.media.addresses import Target, redirected, target
from gateway.media.intake import Budget, Intake
from gateway.media.remote import Downloader
from omni_pipeline.config.schema import MediaPolicy
from omni_pipeline.errors import OmniError
from tests.gateway.scripted import ScriptedPipeline, serving


class RawSite:
    """A server that records requests as they arrive, before any parser has changed them.

    Attributes:
        port: The port of the server at 127.0.0.1.
        asked: Request target and Host header of each request, as they arrived.
        locations: Location headers of the next answers; afterwards the server answers with content.
    """

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[tuple[bytes, bytes]] = []
        self.locations: list[bytes] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *headers = head.split(b"\r\n")
        host = next(header[6:] for header in headers if header.lower().startswith(b"host: "))
        self.asked.append((line.removeprefix(b"GET ").removesuffix(b" HTTP/1.1"), host))
        if self.locations:
            writer.write(b"HTTP/1.1 302 x\r\nLocation: %s\r\n" % self.locations.pop(0))
            writer.write(b"Content-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\ncontent")
        writer.close()


@pytest.fixture
async def site() -> AsyncIterator[RawSite]:
    found = RawSite()
    async with await asyncio.start_server(found.answer, "127.0.0.1", 0) as server:
        found.port = server.sockets[0].getsockname()[1]
        yield found


async def fetched(site: RawSite, url: str) -> bytes:
    """The content at `url`, in which HOST stands for the address of `site`."""

    async def here(host: str, port: int, client: str):
        return [ip_address("127.0.0.1")]

    names = ["127.0.0.1", "media.example", "xn--bcher-kva.example"]
    downloader = Downloader(MediaPolicy(allowed_domains=names), here)
    intake = Intake("images[0]", 1000, Budget(1000, lambda size: None))
    await downloader.fetch(url.replace("HOST", f"127.0.0.1:{site.port}"), intake, param="images[0]", client="a client")
    return bytes(intake.data)


# Paths and queries as some clients or servers write them. A URL library might write them in another way.
AS_WRITTEN = [
    "/a%28b%29%7E.jpg?sig=a%2Fb%3D", "/a(b)~.jpg?sig=a/b=", "/a+b%2Bc%20d.jpg?x=a+b%2Bc%20d", "/a%2fb%2F%3a%3A",
    "/caf%c3%a9/%E2%82%AC", "//a//b///c", "/", "/?", "/a?", "/a??b", "/a?b?c=d", "/a?=&&=&", "/a?x=1&x=2&x=1",
    "/a;v=1/b;?c;d", "/a?b=[]{}|^`<>\"'", "/a%", "/a%zz%1", "/a%00b", "/%2e%2e/%2E/a", "/a/../b/./c/..", "/.", "/..",
    "/a?b=/../c", "/a:b@c", "/@", "/a?u=http://user:pw@10.0.0.1:1/%2F?x", "/a!$&'()*+,;=:@-._~",
    "/%7e%7E%2D%41", "/a?X-Amz-Credential=K%2F20261128%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Signature=0aF",
    "/blob.jpg?sv=2026-01-01&se=2026-12-01T00%3A00%3A00Z&sig=a%2Bb%2Fc%3D", "/a?%3F=%23", "/%23",
]  # fmt: skip


@pytest.mark.parametrize("written", AS_WRITTEN)
async def test_a_url_is_asked_as_it_is_written(site: RawSite, written: str):
    assert await fetched(site, f"http://HOST{written}") == b"content"
    host = f"127.0.0.1:{site.port}".encode()
    assert site.asked == [(written.encode(), host)]


@pytest.mark.parametrize("written", AS_WRITTEN)
async def test_a_redirect_is_followed_as_it_was_sent(site: RawSite, written: str):
    whole = f"http://127.0.0.1:{site.port}{written}".encode()
    site.locations = [whole, written.encode()] if written[:2] != "//" else [whole]
    await fetched(site, "http://HOST/first?sig=%2f")
    assert {path for path, _ in site.asked[1:]} == {written.encode()}


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("", b"/"),
        ("?a=%2f", b"/?a=%2f"),
        ("#there", b"/"),
        ("/a%2f?b=%7E#there?#", b"/a%2f?b=%7E"),
        ("/Grüße€.jpg?q=üb", b"/Gr%C3%BC%C3%9Fe%E2%82%AC.jpg?q=%C3%BCb"),
        ("/%C3%BC/ü", b"/%C3%BC/%C3%BC"),
    ],
)
async def test_only_what_cannot_be_sent_is_encoded(site: RawSite, url: str, asked: bytes):
    await fetched(site, f"http://HOST{url}")
    assert site.asked[0][0] == asked


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        (b"next%2f?a=%7E", b"/a%2Fb/next%2f?a=%7E"),
        (b"./next", b"/a%2Fb/next"),
        (b"../n%65xt", b"/n%65xt"),
        (b"../../../next", b"/next"),
        (b"..", b"/"),
        (b".", b"/a%2Fb/"),
        (b"x//y/../z", b"/a%2Fb/x//z"),
        (b"?only=%28query", b"/a%2Fb/c%28?only=%28query"),
        (b"?", b"/a%2Fb/c%28?"),
        (b"/r\xc3\xbc b\xff#f", b"/r%C3%BC%20b%FF"),
        (b"next?to=http://other.example/../x", b"/a%2Fb/next?to=http://other.example/../x"),
    ],
)
async def test_a_relative_redirect_is_joined_without_other_changes(site: RawSite, location: bytes, asked: bytes):
    site.locations = [location]
    await fetched(site, "http://HOST/a%2Fb/c%28?sig=%2f")
    assert [path for path, _ in site.asked] == [b"/a%2Fb/c%28?sig=%2f", asked]


async def test_a_redirect_without_a_scheme_keeps_that_of_the_first_url(site: RawSite):
    site.locations = [b"//media.example:%d/b%%28" % site.port]
    await fetched(site, "http://HOST/a")
    assert site.asked[1] == (b"/b%28", b"media.example:%d" % site.port)


@pytest.mark.parametrize(
    ("host", "sent"),
    [
        ("MEDIA.example", b"media.example"),
        ("media.example.", b"media.example"),
        ("bücher.example", b"xn--bcher-kva.example"),
        ("@media.example", b"media.example"),
    ],
)
async def test_the_host_that_is_checked_is_the_host_that_is_contacted(site: RawSite, host: str, sent: bytes):
    await fetched(site, f"http://{host}:{site.port}/%28")
    assert site.asked == [(b"/%28", sent + b":%d" % site.port)]


PIECES = [
    "http://", "https://", "HTTP://", "http:", "//", "/", "\\", "@", ":", "#", "?", "[", "]", "%", "%00", "%2e", "%40",
    "%25lo", ".", "..", "\t", "\r\n", " ", "\0", "user", "user:pw", "example.org", "EXAMPLE.org", "127.0.0.1", "127.1",
    "0x7f.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "::1", ":80", ":8080", ":0", ":٨٠", "bücher.example",
    "①②⑦.⓪.⓪.①", "。", "．", "\u200b", "\u00ad", "／", "＠", "\u2100", "xn--", "-", "_", "a", "localhost", ";", "&",
    "\ud800", "\udcff",
]  # fmt: skip


def test_no_mixture_of_hosts_and_separators_is_read_in_two_ways():
    """The HTTP client connects to the host, the port and the address that the check has found in the URL."""
    draw = random.Random(1)
    taken = 0
    for _ in range(20_000):
        text = "http://" + "".join(draw.choices(PIECES, k=draw.randint(1, 6)))
        found = checked(text)
        if found is None:
            continue
        taken += 1
        url = found.url
        assert (url.raw_host, url.port) == (found.host, found.port), text
        assert (url.user, url.password, url.raw_fragment) == (None, None, ""), text
        assert found.literal is None or ip_address(found.host) == found.literal, text
        assert re.fullmatch(r"/[!-~]*", url.raw_path_qs), text
        again = checked(str(url))  # the same URL, read a second time
        assert again is not None, text
        assert (again.host, again.port, again.url.raw_path_qs) == (found.host, found.port, url.raw_path_qs), text
        for location in ("".join(draw.choices(PIECES, k=3)), "next", "?x"):
            if not location.startswith("//") and ":" not in location:
                joined = redirected(found, location)
                assert joined.startswith(f"{url.scheme}://{url.host_port_subcomponent}/"), (text, location)
    assert taken > 1000


def checked(text: str) -> Target | None:
    """The checked URL; None if it is refused."""
    try:
        return target(text, [], param="images[0]")
    except OmniError as error:
        if error.info.code not in ("invalid_url", "media_not_allowed"):
            raise
        return None


async def test_a_signed_url_in_a_request_reaches_its_server_unchanged(site: RawSite):
    url = f"http://127.0.0.1:{site.port}/a%28b%29%7E.jpg?sig=a%2Fb%3D"
    media = MediaPolicy(allowed_domains=["127.0.0.1"])
    async with serving(ScriptedPipeline(["x"]), media=media) as served:
        content = [{"type": "image_url", "image_url": {"url": url}}]
        status, _ = await served.post({"messages": [{"role": "user", "content": content}]})
    assert status == 200
    assert [path for path, _ in site.asked] == [b"/a%28b%29%7E.jpg?sig=a%2Fb%3D"]
