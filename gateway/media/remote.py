"""Downloads one media item over http(s) within the limits of the media policy."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import TypeAlias

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from gateway.media.addresses import IPAddress, Target, check_addresses, target
from omni_pipeline import __version__
from omni_pipeline.config.schema import MediaPolicy
from omni_pipeline.errors import OmniError, bad_request

Resolve: TypeAlias = Callable[[str, int], Awaitable[list[IPAddress]]]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {
    "User-Agent": f"omni-pipeline/{__version__}",
    "Accept": "image/*, audio/*, video/*, */*;q=0.1",
    "Accept-Encoding": "identity",  # media are compressed already, and a small body must not decompress to a large one
}
_PIECE = 1 << 18
# Separate threads, so that names that take long to resolve do not delay the reading of files.
_RESOLVERS = ThreadPoolExecutor(max_workers=8, thread_name_prefix="resolve")


async def resolve_host(host: str, port: int) -> list[IPAddress]:
    """All addresses of `host`, by the system's resolver. Raises OSError."""
    ask = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    answers = await asyncio.get_running_loop().run_in_executor(_RESOLVERS, ask)
    return list(dict.fromkeys(ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers))


class _Pinned(AbstractResolver):
    """Gives the connector the addresses that were checked, so that a second look-up cannot change them."""

    def __init__(self, addresses: list[IPAddress]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""


class Downloader:
    """Fetches remote media.

    Args:
        policy: Allowed sources of media, and limits of a download.
        resolver: Resolves the names of hosts to addresses.
    """

    def __init__(self, policy: MediaPolicy, resolver: Resolve = resolve_host) -> None:
        self._policy = policy
        self._resolve = resolver

    async def fetch(self, url: str, *, param: str, most: int) -> bytearray:
        """The content of `url`.

        Args:
            url: An http or https URL.
            param: Request field of the URL, for errors.
            most: Largest allowed size in bytes.

        Raises:
            OmniError: 400 ``invalid_url``, ``media_not_allowed``, ``media_fetch_failed`` or ``media_fetch_timeout``;
                413 ``media_too_large``.
        """
        try:
            async with asyncio.timeout(self._policy.fetch_seconds):
                return await self._follow(url, param, most)
        except TimeoutError as error:
            raise bad_request(
                f"Downloading '{param}' took longer than {self._policy.fetch_seconds:g} s.",
                param=param,
                code="media_fetch_timeout",
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _failed(f"{type(error).__name__}", param) from error

    async def _follow(self, url: str, param: str, most: int) -> bytearray:
        for _ in range(self._policy.max_redirects + 1):
            answer = await self._ask(target(url, self._policy.allowed_domains, param=param), param, most)
            if not isinstance(answer, URL):
                return answer
            url = str(answer)
        raise _failed(f"more than {self._policy.max_redirects} redirects", param)

    async def _ask(self, asked: Target, param: str, most: int) -> bytearray | URL:
        """The content of one URL, or the URL that it redirects to."""
        addresses = [asked.literal] if asked.literal else await self._resolve(asked.host, asked.port)
        check_addresses(asked, addresses, param=param)
        connector = aiohttp.TCPConnector(resolver=_Pinned(addresses), use_dns_cache=False, force_close=True)
        async with (
            aiohttp.ClientSession(
                connector=connector,
                headers=_HEADERS,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
            ) as session,
            session.get(asked.url, allow_redirects=False) as response,
        ):
            if response.status in _REDIRECTS and (location := response.headers.get("Location")):
                try:
                    return asked.url.join(URL(location))
                except ValueError as error:
                    raise _failed("it redirects to an invalid URL", param) from error
            if response.status != 200:
                raise _failed(f"the remote server answered with status {response.status}", param)
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise _failed("the remote server sent it compressed, although the request forbade that", param)
            if (response.content_length or 0) > most:
                raise too_large(param, most)
            data = bytearray()
            async for piece in response.content.iter_chunked(_PIECE):
                data += piece
                if len(data) > most:
                    raise too_large(param, most)
            return data


def too_large(param: str, most: int) -> OmniError:
    """The error for a media item of more than `most` bytes."""
    return bad_request(
        f"'{param}' is larger than the {most} bytes that are allowed for it.",
        param=param,
        code="media_too_large",
        status=413,
    )


def _failed(reason: str, param: str) -> OmniError:
    return bad_request(f"'{param}' could not be downloaded: {reason}.", param=param, code="media_fetch_failed")
