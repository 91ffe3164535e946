"""Messages between hosts arrive complete and in order. If a connection ends, the sender detects it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pytest
import zmq

from omni_pipeline.errors import StartupError
from omni_pipeline.wire.keys import new_key_pair
from omni_pipeline.wire.network import HostLink, Network
from omni_pipeline.wire.remote import PIECE_BYTES, divide, join
from omni_pipeline.wire.transport import Inbox, Outbox
from tests.omni_pipeline.wire.hosts import SECONDS, Host, Relay, contents

MakeHost: TypeAlias = Callable[..., Host]

RECEIVER = """
import sys, zmq, msgspec
from omni_pipeline.wire.network import HostLink, Network
from omni_pipeline.wire.transport import Inbox
context = zmq.Context()
network = Network(context, msgspec.json.decode(sys.stdin.readline(), type=HostLink))
inbox = Inbox(context, sys.argv[1], network)
print(inbox.remote_address, flush=True)
while inbox.wait(None):
    for received in inbox.drain(1000):
        print(received.size, flush=True)
"""


@pytest.fixture
def pair(host: MakeHost) -> tuple[Host, Host]:
    """Two hosts: b may send messages to a."""
    keys = new_key_pair()
    return host("a", {"b": keys.public}), host("b", {}, keys=keys)


@pytest.fixture
def relay() -> Iterator[Callable[[Host], Relay]]:
    relays: list[Relay] = []

    def make(target: Host) -> Relay:
        relays.append(Relay(target.port))
        return relays[-1]

    yield make
    for one in relays:
        one.close()


@pytest.fixture
def receiver(run_root: Path, pair: tuple[Host, Host]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process with an inbox, and the address of the inbox for host b."""
    _, b = pair
    link = HostLink("c", new_key_pair(), "127.0.0.1", (0, 0), {"b": b.keys.public}, 4.0)
    command = [sys.executable, "-c", RECEIVER, f"ipc://{run_root}/child"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(msgspec.json.encode(link).decode() + "\n")
    child.stdin.flush()
    yield child, child.stdout.readline().strip()
    child.kill()
    child.communicate()
    (run_root / "child").unlink()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def send_until_broken(sender: Host, address: str) -> None:
    """Send messages until `send` finds that the connection has ended. Only `send` can find this, because `lost` is not
    called.
    """
    deadline = time.monotonic() + SECONDS
    while not sender.outbox._broken:
        assert time.monotonic() < deadline
        sender.outbox.send(address, [b"dropped"])
        time.sleep(0.01)


def test_messages_of_one_sender_arrive_in_order_and_none_is_lost(pair: tuple[Host, Host]) -> None:
    a, b = pair
    count = 5000
    for number in range(count):
        b.outbox.send(a.inbox.remote_address, [b"%d" % number])
    assert contents(a.take() for _ in range(count)) == [[b"%d" % number] for number in range(count)]
    assert b.outbox.lost() == []


@pytest.mark.parametrize(
    "sizes",
    [
        [0],
        [10, 0, 100_000],
        [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1],
        [3 * PIECE_BYTES, 5, 40_000_001, 0],
    ],
    ids=str,
)
def test_message_arrives_whole(pair: tuple[Host, Host], sizes: list[int]) -> None:
    a, b = pair
    frames = [os.urandom(size) for size in sizes]
    b.outbox.send(a.inbox.remote_address, frames, [b"second"], [], frames)
    received = [a.take() for _ in range(4)]
    assert contents(received) == [frames, [b"second"], [], frames]
    assert all(frame.readonly for one in received for frame in one.frames)


def test_joining_restores_what_was_divided() -> None:
    frames = [os.urandom(size) for size in (0, 2 * PIECE_BYTES, 1, PIECE_BYTES + 1)]
    parts, pieces = divide(frames)
    assert pieces == {1: 2, 3: 2}
    assert [bytes(frame) for frame in join([memoryview(part) for part in parts], pieces)] == frames


def test_tensors_of_other_types_are_divided_by_bytes() -> None:
    frame: Any = memoryview(bytearray(os.urandom(2 * PIECE_BYTES))).cast("d")
    parts, pieces = divide([frame])
    assert b"".join(bytes(part) for part in parts) == frame.tobytes()
    assert pieces == {0: 2}


def test_one_inbox_receives_over_ipc_and_over_tcp(pair: tuple[Host, Host]) -> None:
    a, b = pair
    for number in range(100):
        b.outbox.send(a.inbox.remote_address, [b"far %d" % number])
        a.outbox.send(a.inbox.address, [b"near %d" % number])
    received = [a.take() for _ in range(200)]
    assert contents(one for one in received if one.host == "b") == [[b"far %d" % number] for number in range(100)]
    assert contents(one for one in received if one.host == "") == [[b"near %d" % number] for number in range(100)]


def test_without_a_network_there_is_no_port(run_root: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    inbox, outbox = Inbox(context, f"ipc://{run_root}/w"), Outbox(context)
    outbox.send(inbox.address, [b"x"])
    assert inbox.wait(SECONDS)
    assert inbox.receive() is not None
    assert (inbox.remote_address, inbox.refused) == ("", 0)
    assert (list(outbox.monitors), outbox.lost()) == ([], [])
    with pytest.raises(ValueError, match="network"):
        outbox.send(f"tcp://127.0.0.1:1 {new_key_pair().public}", [b"x"])
    inbox.close()
    outbox.close()
    context.term()


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:5000", "tcp://127.0.0.1:5000 short", f"tcp://127.0.0.1 {'x' * 40}"]
)
def test_address_without_a_key_or_a_port_is_refused(pair: tuple[Host, Host], address: str) -> None:
    _, b = pair
    with pytest.raises(ValueError, match=r"key|connect"):
        b.outbox.send(address, [b"x"])


def test_port_is_from_the_range(host: MakeHost) -> None:
    port = free_port()
    a = host("a", {}, ports=(port, port))
    assert a.inbox.remote_address == f"tcp://127.0.0.1:{port} {a.keys.public}"


def test_range_without_a_free_port_is_reported(host: MakeHost) -> None:
    port = free_port()
    host("a", {}, ports=(port, port))
    b = host("b", {})
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    network = Network(context, HostLink("c", b.keys, "127.0.0.1", (port, port), {}, 5.0))
    with pytest.raises(StartupError, match=f"from {port} to {port} of 127.0.0.1 are in use"):
        Inbox(context, f"{b.inbox.address}.c", network)
    network.close()
    context.term()


@pytest.mark.parametrize(
    ("listen", "reachable_as", "match"),
    [
        ("0.0.0.0", "", "cannot send messages to 0.0.0.0"),
        ("::", "", "cannot send messages to ::"),
        ("somewhere", "", "'somewhere' is not an IP address"),
        ("192.0.2.1", "", "Cannot bind port .* of 192.0.2.1"),  # an address for examples, which no host has
    ],
)
def test_address_that_cannot_be_used_is_reported(run_root: Path, listen: str, reachable_as: str, match: str) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    network = Network(context, HostLink("a", new_key_pair(), listen, (0, 0), {}, 5.0, reachable_as))
    with pytest.raises(StartupError, match=match):
        Inbox(context, f"ipc://{run_root}/a", network)
    network.close()
    context.term()


def test_wildcard_needs_the_address_for_other_hosts(run_root: Path, pair: tuple[Host, Host]) -> None:
    _, b = pair
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    hosts = {"b": b.keys.public}
    network = Network(context, HostLink("c", new_key_pair(), "0.0.0.0", (0, 0), hosts, 5.0, "127.0.0.1"))
    inbox = Inbox(context, f"ipc://{run_root}/c", network)
    assert inbox.remote_address.startswith("tcp://127.0.0.1:")
    b.outbox.send(inbox.remote_address, [b"x"])
    assert inbox.wait(SECONDS)
    assert inbox.receive() is not None
    inbox.close()
    network.close()
    context.term()


def test_refused_connection_is_lost(pair: tuple[Host, Host]) -> None:
    _, b = pair
    address = f"tcp://127.0.0.1:{free_port()} {new_key_pair().public}"
    b.outbox.send(address, [b"x"])
    assert b.wait_lost(1.0) == [address]
    assert (list(b.outbox.monitors), b.outbox.lost()) == ([], [])


def test_killed_process_is_lost(pair: tuple[Host, Host], receiver: tuple[subprocess.Popen[str], str]) -> None:
    _, b = pair
    child, address = receiver
    b.outbox.send(address, [b"12345"])
    assert child.stdout is not None
    assert child.stdout.readline() == "5\n"
    child.kill()
    assert b.wait_lost(1.0) == [address]


def test_stopped_process_is_lost_within_the_lease(
    host: MakeHost, pair: tuple[Host, Host], receiver: tuple[subprocess.Popen[str], str]
) -> None:
    _, b = pair
    sender = host("sender", {}, keys=b.keys, lease=4.0)
    child, address = receiver
    sender.outbox.send(address, [b"12345"])
    assert child.stdout is not None
    assert child.stdout.readline() == "5\n"
    child.send_signal(signal.SIGSTOP)
    assert sender.wait_lost(4.0) == [address]


def test_cut_connection_is_lost_and_the_next_message_makes_a_new_one(
    pair: tuple[Host, Host], relay: Callable[[Host], Relay]
) -> None:
    a, b = pair
    proxy = relay(a)
    address = proxy.address(a.inbox)
    b.outbox.send(address, [b"before"])
    assert contents([a.take()]) == [[b"before"]]
    proxy.cut()
    assert b.wait_lost(1.0) == [address]
    b.outbox.send(address, [b"after"])
    assert contents([a.take()]) == [[b"after"]]
    assert b.outbox.lost() == []


def test_sending_over_an_ended_connection_reports_it(pair: tuple[Host, Host], relay: Callable[[Host], Relay]) -> None:
    a, b = pair
    proxy = relay(a)
    address = proxy.address(a.inbox)
    b.outbox.send(address, [b"before"])
    assert contents([a.take()]) == [[b"before"]]
    proxy.cut()
    send_until_broken(b, address)
    assert b.wait_lost(1.0) == [address]
    assert b.outbox.lost() == []
    assert list(b.outbox.monitors) == []
    b.outbox.send(address, [b"after"])
    while (content := contents([a.take()])) == [[b"dropped"]]:
        pass  # sent before the proxy ended the connection
    assert content == [[b"after"]]


def test_forgotten_connection_that_send_found_broken_is_not_reported(
    pair: tuple[Host, Host], relay: Callable[[Host], Relay]
) -> None:
    a, b = pair
    proxy = relay(a)
    address = proxy.address(a.inbox)
    b.outbox.send(address, [b"before"])
    a.take()
    proxy.cut()
    send_until_broken(b, address)
    b.outbox.forget(address)
    assert (list(b.outbox.monitors), b.outbox.lost()) == ([], [])


@pytest.mark.parametrize("sent", [0, 64], ids=["idle", "with unsent data"])
def test_silent_connection_is_lost_within_the_lease(host: MakeHost, relay: Callable[[Host], Relay], sent: int) -> None:
    keys = new_key_pair()
    a, b = host("a", {"b": keys.public}, lease=4.0), host("b", {}, keys=keys, lease=4.0)
    proxy = relay(a)
    address = proxy.address(a.inbox)
    b.outbox.send(address, [b"before"])
    assert contents([a.take()]) == [[b"before"]]
    proxy.freeze()
    for _ in range(sent):  # more than the buffers of the operating system
        b.outbox.send(address, [bytes(PIECE_BYTES)])
    assert b.wait_lost(4.0) == [address]


def test_host_that_never_answers_a_new_connection_is_lost_within_the_lease(
    host: MakeHost, relay: Callable[[Host], Relay]
) -> None:
    keys = new_key_pair()
    a, b = host("a", {"b": keys.public}, lease=4.0), host("b", {}, keys=keys, lease=4.0)
    proxy = relay(a)
    proxy.freeze()
    b.outbox.send(proxy.address(a.inbox), [b"x"])
    assert b.wait_lost(4.0) == [proxy.address(a.inbox)]


def test_idle_connection_outlives_its_lease(host: MakeHost) -> None:
    keys = new_key_pair()
    a, b = host("a", {"b": keys.public}, lease=4.0), host("b", {}, keys=keys, lease=4.0)
    b.outbox.send(a.inbox.remote_address, [b"x"])
    assert a.take().host == "b"
    time.sleep(5.0)
    assert b.outbox.lost() == []


def test_forgotten_connection_is_not_reported(pair: tuple[Host, Host]) -> None:
    _, b = pair
    address = f"tcp://127.0.0.1:{free_port()} {new_key_pair().public}"
    b.outbox.send(address, [b"x"])
    b.outbox.forget(address)
    assert (list(b.outbox.monitors), b.outbox.lost()) == ([], [])


def test_last_messages_leave_after_close(pair: tuple[Host, Host]) -> None:
    a, b = pair
    outbox = Outbox(b.context, b.network)
    for number in range(100):
        outbox.send(a.inbox.remote_address, [b"%d" % number])
    outbox.close(linger_ms=5000)
    assert contents(a.take() for _ in range(100)) == [[b"%d" % number] for number in range(100)]
