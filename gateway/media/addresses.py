"""Decides from which hosts the server may download media. The decision depends on the name of the host and on its
resolved addresses.

A URL is parsed once, and its host is checked. The requested URL consists of the checked host, and of the path and query
exactly as they were written. The reason is that a signed URL is valid only for one spelling of its path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias
from urllib.parse import quote

from msgspec import Struct
from yarl import URL

from omni_pipeline.errors import OmniError, bad_request

IPAddress: TypeAlias = IPv4Address | IPv6Address

# All addresses that do not belong to ordinary hosts on the public internet. IANA's special-purpose registries list
# these addresses.
_REFUSED_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, cloud metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_GLOBAL_V6 = IPv6Network("2000::/3")
_REFUSED_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo, ORCHID
        "2001:db8::/32",  # documentation
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = IPv6Network("2002::/16")
_MAPPED = IPv6Network("::ffff:0:0/96")

_DEFAULT_PORTS = {"http": 80, "https": 443}
_PARTS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?://(?P<authority>[^/?#]*)(?P<rest>[^#]*))?")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f\\]")
_NOT_ON_THE_WIRE = re.compile(r"[^!-~]+")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*{_LABEL}\.?")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")


class Target(Struct, frozen=True):
    """A checked URL. The URL may be fetched if its host resolves to allowed addresses.

    Attributes:
        url: URL to request, with `host`, and with the path and query as they were written.
        host: Host in lower case and ASCII, as the resolver expects it.
        port: 1 … 65535.
        literal: Address of the host, if the URL contains an address instead of a name.
        vouched: Whether the operator has listed the host in `allowed_domains`. The addresses of a listed host may be
            private.
    """

    url: URL
    host: str
    port: int
    literal: IPAddress | None
    vouched: bool


def target(text: str, allowed_domains: Sequence[str], *, param: str) -> Target:
    """Check a URL before its host is resolved.

    Args:
        text: The URL.
        allowed_domains: Hosts or ``host:port`` pairs. If the list is not empty, no other host may be contacted.
        param: Request field of the URL, for errors.

    Raises:
        OmniError: 400 ``invalid_url`` if `text` is not an http(s) URL of the accepted form; 400 ``media_not_allowed``
            if the policy forbids the host, address or port.
    """
    parts = _PARTS.match(text)
    scheme = parts["scheme"].lower() if parts else ""
    authority = (parts and parts["authority"]) or ""
    if _UNPRINTABLE.search(text):
        raise _invalid("it contains a space, control character or backslash", param)
    if parts is None or scheme not in _DEFAULT_PORTS:
        raise _invalid("only http and https URLs can be downloaded", param)
    try:
        origin = URL(f"{scheme}://{authority}")
        host = (origin.raw_host or "").lower()
        port = origin.port
        path = _on_the_wire(parts["rest"] or "")
    except (ValueError, IndexError) as error:  # yarl raises IndexError for an authority such as `[@`
        raise _invalid("it cannot be parsed", param) from error
    if origin.user is not None or origin.password is not None:
        raise _invalid("it must not contain a user name or a password", param)
    literal = _literal(host, param)
    if not port:
        raise _invalid("port 0 is not a valid port", param)

    host = host.removesuffix(".")
    listed = {entry.lower().removesuffix(".") for entry in allowed_domains}
    shown = f"[{host}]" if isinstance(literal, IPv6Address) else host
    vouched = bool(listed & {host, shown, f"{shown}:{port}"})
    if listed and not vouched:
        raise not_allowed(f"the host '{host}' is not among the hosts that this server allows", param)
    if f"{shown}:{port}" not in listed and port < 1024 and port not in _DEFAULT_PORTS.values():
        raise not_allowed(f"port {port} is not allowed; use 80, 443 or a port of at least 1024", param)
    url = URL.build(scheme=scheme, host=shown, port=port, path=path, encoded=True)
    found = Target(url=url, host=host, port=port, literal=literal, vouched=vouched)
    if literal is not None:
        check_addresses(found, [literal], param=param)
    return found


def redirected(target: Target, location: str) -> str:
    """The URL to which a response from `target` redirects. `location` is a complete URL, or is joined to the URL of
    `target`.

    Some servers send spaces, which are encoded here.
    """
    location = location.replace(" ", "%20")
    if _PARTS.match(location):
        return location
    if location.startswith("//"):
        return f"{target.url.scheme}:{location}"
    location = location.partition("#")[0]
    asked = target.url.raw_path_qs
    path = asked.partition("?")[0]
    if not location:
        path = asked
    elif location.startswith("?"):
        path += location
    elif location.startswith("/"):
        path = location
    else:
        relative, mark, query = location.partition("?")
        path = _without_dots(path[: path.rindex("/") + 1] + relative) + mark + query
    return f"{target.url.scheme}://{target.url.host_port_subcomponent}{path}"


def check_addresses(target: Target, addresses: Sequence[IPAddress], *, param: str) -> None:
    """Check the addresses that the host of `target` resolved to. One forbidden address is enough to refuse the host.

    Raises:
        OmniError: 400 ``media_not_allowed``.
    """
    if not target.vouched and not all(is_public(address) for address in addresses):
        raise not_allowed(f"the host '{target.host}' is not on the public internet", param)


def is_public(address: IPAddress) -> bool:
    """Whether `address` is ordinary unicast on the public internet. If an IPv6 `address` contains a tunnelled or mapped
    IPv4 address, the IPv4 address is checked instead.
    """
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _REFUSED_V4)
    if address in _MAPPED or address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    if address in _SIX_TO_FOUR:
        return is_public(IPv4Address(int(address) >> 80 & 0xFFFF_FFFF))
    return address in _GLOBAL_V6 and not any(address in network for network in _REFUSED_V6)


def not_allowed(reason: str, param: str) -> OmniError:
    """The error for a media item that the policy forbids."""
    return bad_request(f"'{param}' is not allowed: {reason}.", param=param, code="media_not_allowed")


def _on_the_wire(rest: str) -> str:
    """The path and query of a URL in the form for a request line. The result is not empty, and contains only visible
    ASCII characters.

    Raises:
        ValueError: if UTF-8 cannot encode a character.
    """
    path = rest if rest.startswith("/") else f"/{rest}"
    return _NOT_ON_THE_WIRE.sub(lambda found: quote(found[0].encode("utf-8", "surrogateescape")), path)


def _without_dots(path: str) -> str:
    """The absolute path with the segments ``.`` and ``..`` resolved. Nothing else changes."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _literal(host: str, param: str) -> IPAddress | None:
    """`host` as an IP address; None if `host` is a name. Refuses spellings that only some resolvers treat as an
    address.
    """
    try:
        address = ip_address(host)
    except ValueError:
        pass
    else:
        if getattr(address, "scope_id", None) is not None:
            raise _invalid("its host is an IPv6 address with a zone ('%…'), which is valid on one machine only", param)
        return address
    if not _HOST_NAME.fullmatch(host):
        raise _invalid("its host is not a valid host name", param)
    if _NUMERIC_LABEL.fullmatch(host.removesuffix(".").rpartition(".")[2]):
        raise _invalid("its host ends in a number, so the host must be an IP address in the usual notation", param)
    return None


def _invalid(reason: str, param: str) -> OmniError:
    return bad_request(f"'{param}' is not a usable URL: {reason}.", param=param, code="invalid_url")
