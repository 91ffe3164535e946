"""Sets up the sockets to other hosts: TCP with CURVE, and limits for silent peers and for peers without a known key."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import itertools
import logging
import random
import socket as sockets
from collections.abc import Sequence

import zmq
from zmq.utils.monitor import parse_monitor_message

from omni_pipeline.errors import StartupError
from omni_pipeline.wire.keys import KEY_CHARACTERS
from omni_pipeline.wire.network import HostLink, Network
from omni_pipeline.wire.tensor import Buffer

# Larger frames are divided into pieces before they are sent to another host. ZeroMQ allocates memory for a frame before
# it knows whether the sender has a known key. So the inbox refuses larger frames, and a stranger's connection cannot
# use more memory than one piece.
PIECE_BYTES = 1024 * 1024

# CURVE adds 33 bytes to a frame. The rest is a reserve.
_OVERHEAD_BYTES = 256

# The ZAP domain of the sockets whose connections are checked by the handler in `network`. ZeroMQ requires a domain, and
# passes the domain to the handler. The handler does not use the domain.
_DOMAIN = b"omni"

# All of these events mean that the connection has ended or was never made.
_ENDINGS = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_CLOSE_FAILED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_MONITOR_STOPPED
)

_NUMBERS = itertools.count()

logger = logging.getLogger(__name__)


def is_remote(address: str) -> bool:
    """Whether `address` is the address of an inbox on another host. Such an address also contains the other host's
    public key.
    """
    return address.startswith("tcp://") and " " in address


def listen(socket: zmq.Socket[bytes], network: Network) -> str:
    """Bind a free port for messages from other hosts. Addresses that the socket has bound before are not affected.

    Returns:
        The address that other hosts pass to `Outbox.send`. It consists of the endpoint, a space, and the public key of
        this host.

    Raises:
        StartupError: no port is free, or the address cannot be bound.
    """
    link = network.link
    bound, reachable = _ip(link.listen), _ip(link.reachable_as or link.listen)
    if reachable.is_unspecified:
        raise StartupError(
            f"Other hosts cannot send messages to {reachable}: set the address of this host's network card instead, in "
            "cluster.listen or hosts.….listen, or with `sgl-omni join --listen`."
        )
    _limit(socket, link, bound.version == 6)
    socket.curve_server = True
    socket.curve_secretkey = link.keys.secret.encode()
    # With both options, ZeroMQ refuses a connection if the handler is missing. Otherwise it would accept any key.
    socket.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    socket.setsockopt(zmq.MAXMSGSIZE, PIECE_BYTES + _OVERHEAD_BYTES)
    port = _bind(socket, bound, link.ports)
    return f"{_endpoint(reachable, port)} {link.keys.public}"


def port_of(address: str) -> int:
    """The port in an address that `listen` returned."""
    return int(address.split(" ")[0].rpartition(":")[2])


def cut(frame: zmq.Frame, port: int) -> None:
    """End the connection over which `frame` has arrived at `port`.

    ZeroMQ knows only the number of the connection's descriptor. If the connection has ended already, another connection
    may have this number now. So the function first checks that the descriptor belongs to a connection from the same IP
    address to `port`. Otherwise, the function does nothing.
    """
    with (
        contextlib.suppress(OSError, zmq.ZMQError),
        sockets.fromfd(int(frame.get(zmq.SRCFD)), sockets.AF_INET, sockets.SOCK_STREAM) as own,  # IPv6 works too
    ):
        if own.getsockname()[1] == port and own.getpeername()[0] == frame.get("Peer-Address"):
            own.shutdown(sockets.SHUT_RDWR)


class Connection:
    """A connection to an inbox on another host. ZeroMQ never reconnects it, because messages that were lost with the
    old connection would be missing in the new one.

    Args:
        address: The address that `listen` returned on the other host.

    Attributes:
        socket: The socket for sending. Messages wait until the connection is made.
        monitor: Becomes readable when the connection ends.

    Raises:
        ValueError: the address is malformed.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], network: Network, address: str) -> None:
        self._endpoint, _, key = address.partition(" ")
        if len(key) != KEY_CHARACTERS:
            raise ValueError(f"the key in {address!r} does not have {KEY_CHARACTERS} characters")
        link = network.link
        self.socket = context.socket(zmq.PUSH)
        self.socket.set_hwm(0)
        # This is the time for which ZeroMQ keeps the unsent messages of a connection that has ended. These messages
        # cannot be sent any more. By default, ZeroMQ keeps them for ever, and then the context could never be
        # terminated.
        self.socket.setsockopt(zmq.LINGER, 0)
        _limit(self.socket, link, "[" in self._endpoint)
        self.socket.curve_serverkey = key.encode()
        self.socket.curve_publickey = link.keys.public.encode()
        self.socket.curve_secretkey = link.keys.secret.encode()
        self.socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self.socket.setsockopt(zmq.CONNECT_TIMEOUT, _milliseconds(link.lease_seconds / 2))
        name = f"inproc://omni-connection-{next(_NUMBERS)}"
        self.socket.monitor(name, _ENDINGS)
        self.monitor = context.socket(zmq.PAIR)
        self.monitor.connect(name)
        try:
            self.socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ValueError(f"cannot connect to {self._endpoint!r}: {error}") from error

    def has_ended(self) -> bool:
        """Whether the connection has ended, or could not be made."""
        try:
            event = parse_monitor_message(self.monitor.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            return False
        logger.info("the connection to %s ended: %s", self._endpoint, zmq.Event(event["event"]).name)
        return True

    def stop(self, linger_ms: int = 0) -> None:
        """Close the connection, but not its monitor. The monitor becomes readable."""
        if not self.socket.closed:
            self.socket.disable_monitor()
            self.socket.close(linger=linger_ms)

    def close(self, linger_ms: int = 0) -> None:
        """Close the connection. ZeroMQ tries to send the unsent messages for up to `linger_ms`."""
        self.stop(linger_ms)
        self.monitor.close(linger=0)


def divide(frames: Sequence[Buffer]) -> tuple[list[Buffer], dict[int, int]]:
    """Divide large frames into pieces.

    Returns:
        Two values. The first is the list of all frames, in which pieces replace the large frames. The second is the
        number of pieces of each large frame; the keys are the indices of the large frames in `frames`.
    """
    parts: list[Buffer] = []
    pieces: dict[int, int] = {}
    for index, frame in enumerate(frames):
        view = memoryview(frame)
        if view.nbytes <= PIECE_BYTES:
            parts.append(frame)
            continue
        view = view.cast("B")
        cuts = range(0, view.nbytes, PIECE_BYTES)
        parts += [view[start : start + PIECE_BYTES] for start in cuts]
        pieces[index] = len(cuts)
    return parts, pieces


def join(parts: Sequence[memoryview], pieces: dict[int, int]) -> list[memoryview]:
    """The original frames, from the result of `divide`. Frames that were divided are copied."""
    frames: list[memoryview] = []
    rest = iter(parts)
    for index in itertools.count():
        own = list(itertools.islice(rest, max(1, pieces.get(index, 1))))
        if not own:
            break
        frames.append(own[0] if len(own) == 1 else memoryview(b"".join(own)))
    return frames


def _limit(socket: zmq.Socket[bytes], link: HostLink, ipv6: bool) -> None:
    """Make the socket end connections whose other end is silent, always within less than a lease.

    Both ends send heartbeats, and end the connection if a heartbeat is not answered. But a heartbeat waits behind data
    that cannot be sent, so this limit alone is not sufficient. There are two more limits for this case: the last
    heartbeat from the other end contains a time limit, and the operating system gives up unacknowledged data.
    """
    lease = link.lease_seconds
    seconds = max(1, int(lease / 4))
    socket.setsockopt(zmq.IPV6, int(ipv6))
    socket.setsockopt(zmq.HEARTBEAT_IVL, _milliseconds(lease / 4))
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _milliseconds(lease / 2))
    socket.setsockopt(zmq.HEARTBEAT_TTL, _milliseconds(lease / 2))
    socket.setsockopt(zmq.HANDSHAKE_IVL, _milliseconds(lease / 2))
    socket.setsockopt(zmq.TCP_MAXRT, _milliseconds(lease / 2))
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, seconds)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, seconds)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 2)


def _milliseconds(seconds: float) -> int:
    return max(100, round(seconds * 1000))  # ZeroMQ measures some of the times in tenths of a second


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise StartupError(
            f"{text!r} is not an IP address; set an IP address of this host, such as 10.0.0.2."
        ) from None


def _endpoint(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int | str) -> str:
    return f"tcp://[{address}]:{port}" if address.version == 6 else f"tcp://{address}:{port}"


def _bind(
    socket: zmq.Socket[bytes], address: ipaddress.IPv4Address | ipaddress.IPv6Address, ports: tuple[int, int]
) -> int:
    """Bind one of the ports. Processes try the ports in random order, so that they seldom try the same one."""
    first, last = ports
    choice: list[int | str] = ["*"] if ports == (0, 0) else list(range(first, last + 1))
    random.shuffle(choice)
    for port in choice:
        try:
            socket.bind(_endpoint(address, port))
        except zmq.ZMQError as error:
            if error.errno != errno.EADDRINUSE:
                raise StartupError(f"Cannot bind port {port} of {address}: {error.strerror}.") from error
        else:
            return port_of(socket.getsockopt_string(zmq.LAST_ENDPOINT))
    raise StartupError(
        f"All ports from {first} to {last} of {address} are in use. Each process that receives messages from other "
        "hosts needs a port: set a larger range in cluster.ports, or end the programs that use these ports."
    )
