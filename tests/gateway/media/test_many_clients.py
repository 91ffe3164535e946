"""Tests a complete gateway with media of several clients: slow media and incomplete downloads of one client do not
affect the other clients.

The media come from a real server on this machine. For some paths, this server sends a part of the file and then
nothing.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp import web

from gateway.media.local_files import LocalFiles
from tests.gateway.media.media_server import listening
from tests.gateway.scripted import HELLO, ScriptedPipeline, Served, serving

PART = 8000


class Site:
    """A media server.

    Attributes:
        port: Its port.
        open: Downloads in progress, by path.
    """

    def __init__(self) -> None:
        self.open: Counter[str] = Counter()
        self.port = 0
        self._changed = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answers a request by its path: ``/whole`` sends `PART` bytes and ends; ``/stalled`` sends `PART` bytes and
        then nothing; ``/endless`` never stops sending.
        """
        if request.path == "/whole":
            return web.Response(body=bytes(PART))
        response = web.StreamResponse()
        await response.prepare(request)
        self._count(request.path, 1)
        try:
            await response.write(bytes(PART))
            while request.path == "/endless":
                await response.write(bytes(1000))
            await asyncio.Event().wait()
        finally:
            self._count(request.path, -1)
        return response

    async def until(self, path: str, count: int) -> None:
        """Wait until exactly `count` downloads of `path` are in progress."""
        async with asyncio.timeout(10):
            while self.open[path] != count:
                self._changed.clear()
                await self._changed.wait()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def _count(self, path: str, change: int) -> None:
        self.open[path] += change
        self._changed.set()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    found = Site()
    async with listening(found.answer) as found.port:
        yield found


def asking(*addresses: str) -> dict:
    return HELLO | {"images": list(addresses)}


def keyed(key: str) -> dict[str, str]:
    return {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}


async def code(served: Served, body: dict, **options) -> str:
    """The error code of the answer to a request, or ``ok``."""
    async with asyncio.timeout(10):
        status, answer = await served.post(body, **options)
    return "ok" if status == 200 else answer["error"]["code"]


# --- bytes that have not all arrived ----------------------------------------------------------------------------------


async def test_bytes_of_a_download_count_while_it_goes_on(site):
    media = {"allowed_domains": [f"127.0.0.1:{site.port}"]}
    async with serving(media=media, limits={"held_bytes": 4 * PART}) as served:
        _, writer = await served.connect(asking(site.url("/stalled")))
        await site.until("/stalled", 1)
        assert await code(served, asking(site.url("/whole"))) == "too_many_requests"
        writer.close()  # the client disconnects, and the bytes that its request held are free
        await site.until("/stalled", 0)
        assert await code(served, asking(site.url("/whole"))) == "ok"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [({"held_bytes": 100_000}, "too_many_requests"), ({"body_bytes": 50_000}, "media_too_large")],
)
async def test_a_refused_piece_ends_the_other_downloads_of_its_request_and_gives_everything_back(
    site, limits, expected
):
    media = {"allowed_domains": [f"127.0.0.1:{site.port}"]}
    async with serving(media=media, limits=limits) as served:
        for _ in range(3):
            asked = asking(site.url("/stalled"), site.url("/stalled"), site.url("/endless"))
            assert await code(served, asked) == expected
            await site.until("/stalled", 0)
            await site.until("/endless", 0)
        assert await code(served, asking(*5 * [site.url("/whole")])) == "ok"


async def test_the_bytes_of_one_request_count_together_while_they_arrive(site):
    media = {"allowed_domains": [f"127.0.0.1:{site.port}"]}
    async with serving(media=media, limits={"body_bytes": 3 * PART - 1}) as served:
        assert await code(served, asking(*3 * [site.url("/stalled")])) == "media_too_large"


async def test_the_bytes_of_a_chunked_body_count_while_it_arrives():
    pipeline = ScriptedPipeline(["x"])
    async with serving(pipeline, limits={"held_bytes": 4 * PART}) as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n{PART:x}\r\n".encode() + b" " * PART)
        long = {"messages": [{"role": "user", "content": "x" * (PART + 500)}]}
        while await code(served, long) == "ok":  # wait until the first request has been read
            pass
        writer.close()
        while await code(served, long) != "ok":
            pass


async def test_the_text_of_base64_and_its_bytes_count_together():
    text = base64.b64encode(bytes(PART)).decode()
    for held_bytes, expected in ((len(text) + PART - 1, "too_many_requests"), (len(text) + PART + 500, "ok")):
        async with serving(limits={"held_bytes": 2 * held_bytes}) as served:
            assert await code(served, asking(f"data:;base64,{text}")) == expected


# --- slow media of one client -----------------------------------------------------------------------------------------


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """An event. When it is set, the blocked calls of the test continue."""
    released = threading.Event()
    yield released
    released.set()


async def test_silent_name_servers_of_one_client_do_not_stop_another(site, monkeypatch, stuck):
    asked = []
    really = socket.getaddrinfo

    def look_up(host, *rest, **options):
        if str(host).endswith("silent.example"):
            asked.append(host)
            stuck.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return really("127.0.0.1" if host == "media.example" else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    names = [f"{number}.silent.example" for number in range(160)]
    allowed = [f"{name}:{site.port}" for name in [*names, "media.example"]]
    media = {"allowed_domains": allowed, "fetch_seconds": 0.3}
    async with serving(media=media, api_keys=["a", "b"]) as served:
        # In the second round, the look-ups of the first round have timed out, but still block their threads.
        for _ in range(2):
            slow = [
                asyncio.create_task(
                    served.post(
                        asking(*(f"http://{name}:{site.port}/" for name in names[first : first + 8])),
                        headers=keyed("a"),
                    )
                )
                for first in range(0, 160, 8)
            ]
            while len(asked) < 8:  # noqa: ASYNC110 - `asked` grows in threads
                await asyncio.sleep(0.01)
            honest = asking(site.url("/whole", "media.example"))
            assert await code(served, honest, headers=keyed("b")) == "ok"
            for status, body in await asyncio.gather(*slow):
                assert (status, body["error"]["code"]) == (400, "media_fetch_timeout")
        assert len(asked) == len(set(asked)), "a name was looked up twice at a time"


async def test_slow_files_of_one_client_do_not_stop_the_media_of_another(monkeypatch, stuck, tmp_path):
    """Opening a slow file blocks the thread, as if the disk did not answer."""
    (tmp_path / "good.png").write_bytes(b"picture")
    really = LocalFiles._inside

    def inside(self, path, param):
        if path == "slow.png":
            stuck.wait(30)
        return really(self, path, param)

    monkeypatch.setattr(LocalFiles, "_inside", inside)
    async with serving(media={"local_path": str(tmp_path)}, api_keys=["a", "b"]) as served:
        slow = [asyncio.create_task(served.post(asking(*8 * ["slow.png"]), headers=keyed("a"))) for _ in range(20)]
        await asyncio.sleep(0.1)
        for address in ("good.png", "data:;base64,AAAA"):
            assert await code(served, asking(address), headers=keyed("b")) == "ok"
        assert await code(served, asking("data:;base64,AAAA"), headers=keyed("a")) == "ok"
        stuck.set()
        assert {status for status, _ in await asyncio.gather(*slow)} == {400}
