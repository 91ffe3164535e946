"""Only hosts whose key is in the allowlist deliver messages, and only as long as the key is in the allowlist."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
import zmq

from omni_pipeline.wire.keys import new_key_pair
from omni_pipeline.wire.network import HostLink, Network
from omni_pipeline.wire.remote import PIECE_BYTES
from omni_pipeline.wire.transport import CUT_PARCELS, Inbox
from tests.omni_pipeline.wire.hosts import SECONDS, Host, contents

MakeHost: TypeAlias = Callable[..., Host]

# A message over loopback takes less time than this to arrive.
QUIET_SECONDS = 1.0

# The first bytes of ZeroMQ's protocol, version 3, for a client that uses CURVE.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)


@pytest.fixture
def pair(host: MakeHost) -> tuple[Host, Host]:
    """Two hosts: b may send messages to a."""
    keys = new_key_pair()
    return host("a", {"b": keys.public}), host("b", {}, keys=keys)


@pytest.fixture
def stranger() -> Iterator[zmq.Socket[bytes]]:
    """A PUSH socket that does not use our code."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PUSH)
    yield socket
    socket.close(linger=0)
    context.term()


def serves(receiver: Host, sender: Host) -> None:
    """Check that the receiver gets a message of the sender, and that no other message has arrived before."""
    sender.outbox.send(receiver.inbox.remote_address, [b"good"])
    assert contents([receiver.take()]) == [[b"good"]]


def test_unknown_key_delivers_nothing_and_the_sender_learns_it(pair: tuple[Host, Host], host: MakeHost) -> None:
    a, b = pair
    c = host("c", {})
    c.outbox.send(a.inbox.remote_address, [b"bad"])
    assert c.wait_lost(SECONDS) == [a.inbox.remote_address]
    assert a.take_all(QUIET_SECONDS) == []
    assert a.network.refusals.count >= 1
    serves(a, b)


def test_wrong_server_key_delivers_nothing_and_the_sender_learns_it(pair: tuple[Host, Host]) -> None:
    a, b = pair
    address = f"{a.inbox.remote_address.split()[0]} {new_key_pair().public}"
    b.outbox.send(address, [b"secret"])
    assert b.wait_lost(SECONDS) == [address]
    assert a.take_all(QUIET_SECONDS) == []
    serves(a, b)


def test_client_that_has_copied_a_public_key_delivers_nothing(
    pair: tuple[Host, Host], stranger: zmq.Socket[bytes]
) -> None:
    a, b = pair
    stranger.curve_serverkey = a.keys.public.encode()
    stranger.curve_publickey, stranger.curve_secretkey = b.keys.public.encode(), new_key_pair().secret.encode()
    stranger.connect(a.inbox.remote_address.split()[0])
    stranger.send(b"bad")
    assert a.take_all(QUIET_SECONDS) == []
    serves(a, b)


def test_client_without_security_delivers_nothing(pair: tuple[Host, Host], stranger: zmq.Socket[bytes]) -> None:
    a, b = pair
    stranger.connect(a.inbox.remote_address.split()[0])
    stranger.send(b"bad")
    assert a.take_all(QUIET_SECONDS) == []
    serves(a, b)


def test_client_with_a_password_delivers_nothing(pair: tuple[Host, Host], stranger: zmq.Socket[bytes]) -> None:
    a, b = pair
    stranger.plain_username, stranger.plain_password = b"b", b.keys.public.encode()
    stranger.connect(a.inbox.remote_address.split()[0])
    stranger.send(b"bad")
    assert a.take_all(QUIET_SECONDS) == []
    serves(a, b)


@pytest.mark.parametrize(
    "data",
    [
        os.urandom(100_000),
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x01\x00" + b"\x04\x00bad",  # version 1 of ZeroMQ's protocol: a routing id, then a message
        b"\xff" + bytes(8) + b"\x7f\x01\x08\x00\x00" + b"\x00\x03bad",  # version 2 of ZeroMQ's protocol
        GREETING + os.urandom(1000),
        GREETING + b"\x00\x03bad",  # a message instead of a handshake
        GREETING + b"\x04\xc8\x05HELLO" + os.urandom(194),
    ],
    ids=["random", "http", "protocol 1", "protocol 2", "random handshake", "no handshake", "random hello"],
)
def test_raw_bytes_deliver_nothing(pair: tuple[Host, Host], data: bytes) -> None:
    a, b = pair
    with socket.create_connection(("127.0.0.1", a.port)) as raw:
        raw.settimeout(SECONDS)
        try:
            raw.sendall(data)
            while raw.recv(4096):
                pass
        except ConnectionError:
            pass  # the connection has been refused
    assert a.take_all(QUIET_SECONDS) == []
    serves(a, b)


def test_stranger_cannot_announce_a_large_frame(host: MakeHost) -> None:
    a = host("a", {}, lease=12.0)
    with socket.create_connection(("127.0.0.1", a.port)) as raw:
        raw.settimeout(a.network.link.lease_seconds / 4)  # less than the time for a handshake
        raw.sendall(GREETING + b"\x06" + (2 * PIECE_BYTES).to_bytes(8, "big"))
        try:
            while raw.recv(4096):
                pass
        except ConnectionError:
            pass


def test_silent_stranger_loses_its_connection(host: MakeHost) -> None:
    a = host("a", {}, lease=1.0)
    with socket.create_connection(("127.0.0.1", a.port)) as raw:
        raw.settimeout(SECONDS)
        while raw.recv(4096):
            pass


def test_revoked_key_delivers_nothing_over_its_connection(
    pair: tuple[Host, Host], caplog: pytest.LogCaptureFixture
) -> None:
    a, b = pair
    serves(a, b)
    a.network.allow({})
    for number in range(3):
        b.outbox.send(a.inbox.remote_address, [b"content %d" % number])
    with caplog.at_level(logging.WARNING):
        assert a.take_all(QUIET_SECONDS) == []
    assert a.inbox.refused == 3
    assert len(caplog.messages) == 1
    assert b.keys.public in caplog.text
    assert "content" not in caplog.text
    assert b.outbox.lost() == []  # the same connection, not a new one
    a.network.allow({"b": b.keys.public})
    serves(a, b)


def test_message_that_waited_when_its_key_was_revoked_is_dropped(pair: tuple[Host, Host]) -> None:
    a, b = pair
    b.outbox.send(a.inbox.remote_address, [b"x"])
    assert a.inbox.wait(SECONDS)
    a.network.allow({})
    assert a.take_all(QUIET_SECONDS) == []
    assert a.inbox.refused == 1


def test_revoked_host_that_sends_on_is_cut_off(pair: tuple[Host, Host], host: MakeHost) -> None:
    a, b = pair
    c = host("c", {})
    a.network.allow({"b": b.keys.public, "c": c.keys.public})
    for sender in (b, c):
        serves(a, sender)
    a.network.allow({"c": c.keys.public})
    for _ in range(CUT_PARCELS):
        b.outbox.send(a.inbox.remote_address, [b"x"])
    assert a.take_all(QUIET_SECONDS) == []
    assert b.wait_lost(SECONDS) == [a.inbox.remote_address]
    assert c.outbox.lost() == []
    serves(a, c)


def test_key_that_is_added_later_is_accepted(host: MakeHost) -> None:
    a, b = host("a", {}), host("b", {})
    b.outbox.send(a.inbox.remote_address, [b"early"])
    assert b.wait_lost(SECONDS) == [a.inbox.remote_address]
    a.network.allow({"b": b.keys.public})
    serves(a, b)


def test_messages_carry_the_name_of_the_host(pair: tuple[Host, Host]) -> None:
    a, b = pair
    b.outbox.send(a.inbox.remote_address, [b"x"])
    assert a.take().host == "b"
    a.outbox.send(a.inbox.address, [b"x"])
    assert a.take().host == ""


def test_allowed_host_that_sends_nonsense_does_not_stop_the_inbox(
    pair: tuple[Host, Host], stranger: zmq.Socket[bytes]
) -> None:
    a, b = pair
    stranger.curve_serverkey = a.keys.public.encode()
    stranger.curve_publickey, stranger.curve_secretkey = b.keys.public.encode(), b.keys.secret.encode()
    stranger.connect(a.inbox.remote_address.split()[0])
    nonsense = [b"", b"\xc1", b"x", b"\x92\x00\x91\xff", b"\x93\x00\x91\x01\x81\x00\xff"]
    for label in nonsense:
        stranger.send_multipart([label, b"frame"])
    received = a.take_all(QUIET_SECONDS)
    assert a.inbox.refused + len(received) == len(nonsense)
    assert a.inbox.refused == 4
    serves(a, b)


def test_after_the_handler_has_ended_nobody_gets_in(pair: tuple[Host, Host]) -> None:
    a, b = pair
    a.network.close()
    b.outbox.send(a.inbox.remote_address, [b"x"])
    assert b.wait_lost(SECONDS) == [a.inbox.remote_address]
    assert a.take_all(QUIET_SECONDS) == []


@pytest.mark.parametrize(
    "hosts",
    [{"b": "short"}, {"b": "x" * 40, "c": "x" * 40}, {"": "x" * 40}],
    ids=["malformed", "twice", "no name"],
)
def test_allowlist_with_a_bad_key_is_refused_as_a_whole(pair: tuple[Host, Host], hosts: dict[str, str]) -> None:
    a, b = pair
    with pytest.raises(ValueError, match="key"):
        a.network.allow(hosts)
    assert a.network.host_of(b.keys.public) == "b"


def test_host_of_knows_only_the_current_hosts(pair: tuple[Host, Host]) -> None:
    a, b = pair
    assert a.network.host_of(a.keys.public) is None
    assert a.network.host_of(b.keys.public) == "b"
    a.network.allow({"renamed": b.keys.public})
    assert a.network.host_of(b.keys.public) == "renamed"


def test_times_are_converted_between_the_clocks_of_hosts(pair: tuple[Host, Host]) -> None:
    a, b = pair
    # These offsets mean that the clock of the main host is 1000 s ahead of a's clock, and 7 s behind b's clock.
    a.network.offset, b.network.offset = 1000.0, -7.0
    before = time.monotonic()
    b.outbox.send(a.inbox.remote_address, [b"x"])
    after = time.monotonic()
    # Really, both hosts use the same clock. According to the offsets, the time t on b's clock is t - 7 on the main
    # host's clock, and t - 7 - 1000 on a's clock.
    assert before <= a.take().sent + 1007.0 <= after


def test_times_over_ipc_do_not_depend_on_the_offset(pair: tuple[Host, Host], run_root: Path) -> None:
    a, b = pair
    a.network.offset = 1000.0  # b's process has not received this offset yet
    before = time.monotonic()
    b.outbox.send(a.inbox.address, [b"x"])
    a.outbox.send(b.inbox.address, [b"x"])
    after = time.monotonic()
    assert before <= a.take().sent <= after
    assert before <= b.take().sent <= after
    plain = Inbox(b.context, f"ipc://{run_root}/plain")
    a.outbox.send(plain.address, [b"x"])
    assert plain.wait(SECONDS)
    received = plain.receive()
    assert received is not None
    assert before <= received.sent <= time.monotonic()
    plain.close()


def test_closing_leaves_no_thread_and_no_descriptor(host: MakeHost, run_root: Path) -> None:
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    keys = new_key_pair()
    a = Host(run_root, "x", {"y": keys.public})
    b = Host(run_root, "y", {}, keys=keys)
    serves(a, b)
    assert threading.active_count() > threads
    for one in (a, b):
        one.close()
        one.network.close()  # a second call does nothing
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert list(run_root.iterdir()) == []


def test_thread_ends_with_its_context() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    network = Network(context, HostLink("a", new_key_pair(), "127.0.0.1", (0, 0), {}, 5.0))
    ending = threading.Thread(target=context.term)
    ending.start()
    network.close()
    ending.join(SECONDS)
    assert not ending.is_alive()


def test_second_network_in_a_context_is_refused() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    link = HostLink("a", new_key_pair(), "127.0.0.1", (0, 0), {}, 5.0)
    network = Network(context, link)
    with pytest.raises(zmq.ZMQError):
        Network(context, link)
    network.close()
    context.term()
