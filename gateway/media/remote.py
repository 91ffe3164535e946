"""Downloads one media item over http(s) within the limits of the media policy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from gateway.media.addresses import IPAddress, Target, check_addresses, redirected, target
from gateway.media.intake import Intake
from gateway.media.shares import Shares
from omni_pipeline import __version__
from omni_pipeline.config.schema import MediaPolicy
from omni_pipeline.errors import OmniError, bad_request

# Resolves a host and a port to addresses, for a client.
Resolve: TypeAlias = Callable[[str, int, str], Awaitable[list[IPAddress]]]

# Maximum number of downloads at a time. Each download needs a socket, and a process can have only a limited number of
# sockets.
MOST_DOWNLOADS = 256

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {
    "User-Agent": f"omni-pipeline/{__version__}",
    "Accept": "image/*, audio/*, video/*, */*;q=0.1",
    # no compression: media are compressed already, and a small response could become very large when decompressed
    "Accept-Encoding": "identity",
}
_PIECE = 1 << 18


class _Pinned(AbstractResolver):
    """A resolver that returns the checked addresses to aiohttp's connector. So no second look-up can return other
    addresses.
    """

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

    def __init__(self, policy: MediaPolicy, resolver: Resolve) -> None:
        self._policy = policy
        self._resolve = resolver
        self._downloads = Shares(MOST_DOWNLOADS)

    async def fetch(self, url: str, intake: Intake, *, param: str, client: str) -> None:
        """Download the content of `url`.

        Args:
            url: An http or https URL.
            intake: Receives the content.
            param: Request field of the URL, for errors.
            client: Client that sent the request.

        Raises:
            OmniError: 400 ``invalid_url``, ``media_not_allowed``, ``media_fetch_failed`` or ``media_fetch_timeout``;
                an error of `intake`.
        """
        try:
            async with self._downloads.one(client), asyncio.timeout(self._policy.fetch_seconds):
                await self._follow(url, intake, param, client)
        except TimeoutError as error:
            raise bad_request(
                f"Downloading '{param}' took longer than {self._policy.fetch_seconds:g} s.",
                param=param,
                code="media_fetch_timeout",
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _failed(f"{type(error).__name__}", param) from error

    async def _follow(self, url: str, intake: Intake, param: str, client: str) -> None:
        for _ in range(self._policy.max_redirects + 1):
            asked = target(url, self._policy.allowed_domains, param=param)
            redirect = await self._ask(asked, intake, param, client)
            if redirect is None:
                return
            url = redirect
        raise _failed(f"there were more than {self._policy.max_redirects} redirects", param)

    async def _ask(self, asked: Target, intake: Intake, param: str, client: str) -> str | None:
        """Download the content of one URL. If the server answers with a redirect, return the URL of the redirect."""
        addresses = [asked.literal] if asked.literal else await self._resolve(asked.host, asked.port, client)
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
                return redirected(asked, location)
            if response.status != 200:
                raise _failed(f"the remote server answered with status {response.status}", param)
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise _failed("the remote server sent the file compressed, although the request forbade that", param)
            intake.expect(response.content_length or 0)
            async for piece in response.content.iter_chunked(_PIECE):
                intake.add(piece)
        return None


def _failed(reason: str, param: str) -> OmniError:
    return bad_request(f"'{param}' could not be downloaded: {reason}.", param=param, code="media_fetch_failed")
