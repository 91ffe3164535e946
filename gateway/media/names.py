"""Resolves the names of media hosts to addresses. The system's resolver blocks, so it is called in threads."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import TypeAlias

from gateway.media.addresses import IPAddress
from gateway.media.threads import Threads

LookUp: TypeAlias = Callable[[str, int], list[IPAddress]]

# Maximum number of names that are looked up at a time. A look-up blocks until its name server answers.
MOST_LOOK_UPS = 64


def look_up(host: str, port: int) -> list[IPAddress]:
    """All addresses of `host`. This call blocks until the name server answers. Raises OSError if the look-up fails."""
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers))


class Names:
    """A resolver that looks up names in threads. Clients share the threads.

    Args:
        look_up: Resolves a name; may block.
    """

    def __init__(self, look_up: LookUp = look_up) -> None:
        self._look_up = look_up
        self._threads = Threads("look up", MOST_LOOK_UPS)

    async def resolve(self, host: str, port: int, client: str) -> list[IPAddress]:
        """Look up all addresses of `host`. Clients share the threads, so the look-up counts towards the share of
        `client`. Raises OSError.
        """
        return await self._threads.run(client, functools.partial(self._look_up, host, port), key=(host, port))
