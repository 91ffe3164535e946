"""The server never connects to a private address, even if a request spells the address in an unusual way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from ipaddress import ip_address

import pytest

from gateway.api.conversion import MediaSource
from gateway.media import addresses
from gateway.media.loading import MediaLoader
from omni_pipeline.config.schema import MediaPolicy
from omni_pipeline.errors import OmniError
from tests.gateway.scripted import HELLO, ScriptedPipeline, serving

FRONT = "127.0.0.3"  # these tests treat this address as public
SECRETS = ("127.0.0.2", "127.0.0.1", "::1")
REFUSALS = {"media_not_allowed", "invalid_url"}


class Servers:
    """A secret server at several addresses of this machine, and a front server that redirects to the secret server.

    Attributes:
        port: Port of both servers.
        connections: Connections to the secret server.
        redirect: Status line and headers with which the front server answers.
    """

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self.redirect = ""

    async def secret(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nsecret")
        writer.close()

    async def front(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {self.redirect}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        writer.close()

    def url(self, text: str) -> str:
        return text.replace("PORT", str(self.port))


@pytest.fixture(scope="module")
def free_port() -> int:
    """A port that is free at all addresses of both servers."""
    while True:
        with ExitStack() as sockets:
            port = 0
            try:
                for host in (FRONT, *SECRETS):
                    family = socket.AF_INET6 if ":" in host else socket.AF_INET
                    bound = sockets.enter_context(socket.create_server((host, port), family=family))
                    port = bound.getsockname()[1]
            except OSError:
                continue
            return port


@pytest.fixture
async def servers(free_port: int) -> AsyncIterator[Servers]:
    found = Servers()
    found.port = free_port
    async with AsyncExitStack() as stack:
        for host in SECRETS:
            await stack.enter_async_context(await asyncio.start_server(found.secret, host, free_port))
        await stack.enter_async_context(await asyncio.start_server(found.front, FRONT, free_port))
        yield found


async def outcome(loader: MediaLoader, url: str) -> str:
    """The error code with which `url` is refused, or the fetched content."""
    try:
        [media] = await loader.load([MediaSource("image", url, "images[0]")], lambda size: None, client="a client")
    except OmniError as error:
        info = error.info
    else:
        return bytes(media.data.buffer()).decode()
    assert (info.status, info.param) == (400, "images[0]")
    return info.code or ""


def loader(resolver=None, **policy) -> MediaLoader:
    policy.setdefault("local_path", "")
    return MediaLoader(MediaPolicy(**policy), total_bytes=1000, resolver=resolver)


# --- addresses --------------------------------------------------------------------------------------------------------

SPELLINGS = [
    "http://127.0.0.2:PORT/", "http://127.0.0.1:PORT/", "http://127.0.0.1.:PORT/", "http://localhost:PORT/",
    "http://LOCALHOST:PORT/", "http://localhost.:PORT/", "http://127.0.0.2:PORT/a.png?b=c#d",
    "HTTP://127.0.0.2:PORT/", "http://user@127.0.0.2:PORT/", "http://user:key@127.0.0.2:PORT/",
    "http://example.org@127.0.0.2:PORT/", "http://127.0.0.2:PORT@example.org:22/", "http://127.0.0.2:PORT\\@example.org/",
    "http://example.org\\@127.0.0.2:PORT/", "http://127.0.0.2:PORT#@example.org/",
    # numbers that some resolvers read as addresses
    "http://2130706434:PORT/", "http://2130706433:PORT/", "http://0x7f000002:PORT/", "http://0X7F000002:PORT/",
    "http://0x7f.0.0.2:PORT/", "http://0x7f.0x0.0x0.0x2:PORT/", "http://0177.0.0.2:PORT/", "http://0177.0.0.02:PORT/",
    "http://017700000002:PORT/", "http://00000177.0.0.2:PORT/", "http://127.2:PORT/", "http://127.0.2:PORT/",
    "http://127.0.0.002:PORT/", "http://127.000.000.002:PORT/", "http://127.0x0.0.2:PORT/", "http://127.0.0.2.:PORT/",
    "http://6425673730:PORT/", "http://127.0.0.514:PORT/", "http://0:PORT/", "http://0.0.0.0:PORT/",
    # IPv6, and IPv4 inside IPv6
    "http://[::1]:PORT/", "http://[0:0:0:0:0:0:0:1]:PORT/", "http://[0000::1]:PORT/", "http://[::]:PORT/",
    "http://[::ffff:127.0.0.2]:PORT/", "http://[::ffff:7f00:2]:PORT/", "http://[::FFFF:7F00:0002]:PORT/",
    "http://[0:0:0:0:0:ffff:127.0.0.2]:PORT/", "http://[::127.0.0.2]:PORT/", "http://[::7f00:2]:PORT/",
    "http://[::ffff:0:127.0.0.2]:PORT/", "http://[64:ff9b::127.0.0.2]:PORT/", "http://[64:ff9b:1::7f00:2]:PORT/",
    "http://[2002:7f00:2::]:PORT/", "http://[::1%25lo]:PORT/", "http://[::1%lo]:PORT/", "http://[fe80::1%25lo]:PORT/",
    # Unicode variants of letters and digits, escapes, and malformed URLs.
    "http://①②⑦.⓪.⓪.②:PORT/", "http://127。0。0。2:PORT/", "http://127．0．0．2:PORT/", "http://１２７.0.0.2:PORT/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:PORT/", "http://loc%61lhost:PORT/", "http://%31%32%37.0.0.2:PORT/", "http://127.0.0.2%00:PORT/",
    "http://127.0.0.2%2eexample.org:PORT/", "http://127.0.0.2\t:PORT/", "http://127.0.0.2\r\nHost: x:PORT/",
    " http://127.0.0.2:PORT/", "http:127.0.0.2:PORT/", "http:/127.0.0.2:PORT/", "http:///127.0.0.2:PORT/",
    "http:\\\\127.0.0.2:PORT/", "https://127.0.0.2:PORT/", "ftp://127.0.0.2:PORT/", "gopher://127.0.0.2:PORT/",
    "dict://127.0.0.2:PORT/", "ws://127.0.0.2:PORT/", "view-source:http://127.0.0.2:PORT/",
    "url:http://127.0.0.2:PORT/", "jar:http://127.0.0.2:PORT/!/", "concat:http://127.0.0.2:PORT/", "//127.0.0.2:PORT/",
]  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_no_spelling_of_a_private_address_is_fetched(servers: Servers, spelling: str):
    assert await outcome(loader(), servers.url(spelling)) in REFUSALS
    assert servers.connections == 0


def test_the_tables_are_long_enough():
    assert len(SPELLINGS) + len(LOCATIONS) + len(ANSWERS) + len(FILES) >= 150


async def test_the_server_would_answer(servers: Servers):
    """The secret server can be reached. Otherwise, the tests that expect no connection to it would prove nothing."""
    for host in ("127.0.0.2", "127.0.0.1", "[::1]"):
        assert await outcome(loader(allowed_domains=[host]), f"http://{host}:{servers.port}/") == "secret"
    assert servers.connections == len(SECRETS)


async def test_a_whole_server_refuses_them_by_field(servers: Servers):
    async with serving(ScriptedPipeline(["x"])) as served:
        for spelling in SPELLINGS:
            content = [{"type": "image_url", "image_url": {"url": servers.url(spelling)}}]
            status, body = await served.post({"messages": [{"role": "user", "content": content}]})
            error = body["error"]
            assert (status, error["param"]) == (400, "messages[0].content[0].image_url.url"), spelling
            assert error["code"] in REFUSALS | {"media_not_found"}, spelling
        assert (await served.post(HELLO))[0] == 200
    assert servers.connections == 0


async def test_a_proxy_of_the_environment_is_not_used(servers: Servers, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.2:{servers.port}")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    await outcome(loader(allowed_domains=["127.0.0.1"]), f"http://127.0.0.1:{port}/")
    assert servers.connections == 0


# --- names ------------------------------------------------------------------------------------------------------------

ANSWERS = [
    ["127.0.0.2"], ["127.0.0.1"], ["::1"], ["::ffff:127.0.0.2"], ["64:ff9b::7f00:2"], ["2002:7f00:2::"], ["0.0.0.0"],
    ["::"], ["127.0.0.3", "127.0.0.2"], ["127.0.0.2", "127.0.0.3"], ["127.0.0.3", "::1"], ["127.0.0.3", "10.0.0.1"],
    ["127.0.0.3", "127.0.0.3", "127.0.0.3", "127.0.0.2"], ["127.0.0.3", "169.254.169.254"], ["127.0.0.3", "fe80::1"],
    ["8.8.8.8", "127.0.0.2"], ["2606:4700:4700::1111", "::1"], ["8.8.8.8", "fd00:ec2::254"], ["8.8.8.8", "0.0.0.0"],
]  # fmt: skip


@pytest.fixture
def public_front(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the address checks treat the front server as public."""
    really = addresses.is_public
    monkeypatch.setattr(addresses, "is_public", lambda address: str(address) == FRONT or really(address))


@pytest.mark.parametrize("answers", ANSWERS, ids=" ".join)
@pytest.mark.usefixtures("public_front")
async def test_a_name_with_a_private_address_among_its_answers_is_not_fetched(servers: Servers, answers: list[str]):
    async def resolver(host: str, port: int, client: str):
        return [ip_address(answer) for answer in answers]

    assert await outcome(loader(resolver), f"http://media.example:{servers.port}/") == "media_not_allowed"
    assert servers.connections == 0


@pytest.mark.usefixtures("public_front")
async def test_a_name_that_changes_its_address_is_asked_once_and_checked_again_after_a_redirect(servers: Servers):
    answers = iter([FRONT, "127.0.0.2"])

    async def resolver(host: str, port: int, client: str):
        return [ip_address(next(answers))]

    servers.redirect = servers.url("302 Found\r\nLocation: http://media.example:PORT/")
    assert await outcome(loader(resolver), f"http://media.example:{servers.port}/") == "media_not_allowed"
    assert servers.connections == 0


# --- redirects --------------------------------------------------------------------------------------------------------

LOCATIONS = [
    *SPELLINGS[:2], "http://localhost:PORT/", "http://2130706434:PORT/", "http://0x7f000002:PORT/", "http://127.2:PORT/",
    "http://0177.0.0.2:PORT/", "http://[::1]:PORT/", "http://[::ffff:127.0.0.2]:PORT/", "http://[::ffff:7f00:2]:PORT/",
    "http://[64:ff9b::7f00:2]:PORT/", "http://[2002:7f00:2::]:PORT/", "//127.0.0.2:PORT/", "//[::1]:PORT/",
    "http://user@127.0.0.2:PORT/", "https://127.0.0.2:PORT/", "http://169.254.169.254/", "http://10.0.0.1/",
    "http://secret.example:PORT/", "http://127.0.0.2:PORT/\tx", "file:///etc/passwd", "data:;base64,AAAA",
    "ftp://127.0.0.2:PORT/", "gopher://127.0.0.2:PORT/_x", "http://①②⑦.⓪.⓪.②:PORT/".encode().decode("latin-1"),
]  # fmt: skip


async def front_and_secret(host: str, port: int, client: str):
    return [ip_address("127.0.0.2" if host == "secret.example" else FRONT)]


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.usefixtures("public_front")
async def test_no_redirect_leads_there(servers: Servers, location: str):
    servers.redirect = f"302 Found\r\nLocation: {servers.url(location)}"
    found = await outcome(loader(front_and_secret), f"http://media.example:{servers.port}/")
    assert found in REFUSALS | {"media_fetch_failed"}
    assert servers.connections == 0


@pytest.mark.parametrize("status", ["300 x", "301 x", "302 x", "303 x", "304 x", "305 x", "306 x", "307 x", "308 x"])
@pytest.mark.parametrize("header", ["Location", "Refresh", "URI", "Content-Location", "Link"])
@pytest.mark.usefixtures("public_front")
async def test_no_kind_of_redirect_leads_there(servers: Servers, status: str, header: str):
    value = {"Refresh": "0; url=", "Link": "<"}.get(header, "") + f"http://127.0.0.2:{servers.port}/"
    servers.redirect = f"{status}\r\n{header}: {value}"
    found = await outcome(loader(front_and_secret), f"http://media.example:{servers.port}/")
    assert found in REFUSALS | {"media_fetch_failed"}
    assert servers.connections == 0


# --- files ------------------------------------------------------------------------------------------------------------

FILES = [
    "/etc/passwd", "//etc/passwd", "///etc/passwd", "/./etc/passwd", "/etc/../etc/passwd", "../../../../etc/passwd",
    "a/../../../../../etc/passwd", "./../etc/passwd", "..", "../", "/", "~/x", "~root/x", "$HOME/x",
    "/proc/self/environ",
    "/proc/self/root/etc/passwd", "/proc/self/cwd/../x", "/proc/self/fd/0", "/dev/stdin", "/dev/zero", "/dev/fd/0",
    "file:///etc/passwd", "file:/etc/passwd", "file:etc/../../../../etc/passwd", "file:////etc/passwd",
    "FILE:///etc/passwd", "File:///etc/passwd", "file://localhost/etc/passwd", "file://127.0.0.1/etc/passwd",
    "file://evil.example/etc/passwd", "file:///%65tc/passwd", "file:///etc%2fpasswd", "file:///..%2f..%2fetc/passwd",
    "file:///%2e%2e/%2e%2e/etc/passwd", "file:///etc/passwd%00.png", "file:///etc/passwd?x.png", "file:///etc/passwd#x",
    "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "..\\..\\etc\\passwd", "/etc/passwd\0.png", "\\\\host\\share",
    "file:\\\\\\etc\\passwd", "netdoc:///etc/passwd", "local:/etc/passwd", "phar:///etc/passwd", "php://input",
    "pipe:0", "fd:0", "concat:/etc/passwd", "subfile:/etc/passwd", "lavfi:testsrc", "crypto:/etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("root", ["", "ROOT"])
async def test_no_path_leads_out_of_the_directory(tmp_path, root: str, path: str):
    (tmp_path / "root").mkdir()
    files = loader(local_path=str(tmp_path / "root") if root else "")
    assert await outcome(files, path) in REFUSALS | {"media_not_found"}
