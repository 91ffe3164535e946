"""Refuses requests whose Host header contains the name of another host. So a web page cannot reach this server under
the host name of the page.

For a browser, two URLs with the same host name and port are the same site, even if the IP address of the name changes.
The owner of a web page can change the DNS record of the page's host name to the address of this server (DNS rebinding).
The browser then lets the page read the server's answers. This attack needs a host name, so an IP address is always
accepted as host.
"""

from __future__ import annotations

import ipaddress
import re
import socket

from aiohttp import web
from aiohttp.typedefs import Handler

from omni_pipeline.config.schema import Server
from omni_pipeline.errors import ErrorInfo, OmniError

_ANY = "*"
_HOST = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<name>[a-z0-9_.-]*))(?::[0-9]*)?")
# The maximum length of a host name.
_LONGEST_NAME = 253
# The host name by which every machine reaches itself. The subdomains of this name are reserved for the same purpose.
_LOOPBACK = "localhost"


class AcceptedHosts:
    """The host names that the server accepts in requests.

    Args:
        server: Configuration of the server, which may contain additional names.
    """

    def __init__(self, server: Server) -> None:
        named = [name.lower().removesuffix(".") for name in server.allowed_hosts]
        self._any = _ANY in named
        self._names = {_LOOPBACK, socket.gethostname().lower(), server.host.lower()}
        self._names |= {name for name in named if not name.startswith(f"{_ANY}.")}
        self._endings = (f".{_LOOPBACK}", *(name[1:] for name in named if name.startswith(f"{_ANY}.")))

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer 403 if the request contains a host that is not accepted.

        The host is in the Host header. If the request line contains an absolute URL, the host is in this URL too. A
        request without a host is accepted, because it does not come from a browser.
        """
        for host in {request.host or "", request.headers.get("Host", "")}:
            if not self.accept(host):
                raise _refused(host)
        return await handler(request)

    def accept(self, host: str) -> bool:
        """Whether `host`, with or without a port, is accepted. An empty host is accepted."""
        found = _HOST.fullmatch(host.lower())
        if found is None:
            # if the request line has an absolute URL, aiohttp returns an IPv6 address without brackets
            return _is_ip(host)
        if found["v6"] is not None:
            return _is_ip(found["v6"])
        name = found["name"].removesuffix(".")
        return not name or self._any or name in self._names or name.endswith(self._endings) or _is_ip(name)


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _refused(host: str) -> OmniError:
    name = repr(host[:_LONGEST_NAME])
    return OmniError(
        ErrorInfo(
            status=403,
            message=f"This server does not accept requests to the host {name}. If this is a name of the server, the "
            "operator can list it with --allowed-host (server.allowed_hosts). An IP address is always accepted.",
            type="permission_error",
            code="host_not_allowed",
        )
    )
