"""A process receives all messages that another process sends, complete and in order. Large frames are not copied."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from omni_pipeline.errors import StartupError
from omni_pipeline.wire.transport import Inbox, Outbox, endpoint, make_run_dir

SECONDS = 10.0


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture(params=["ipc", "tcp"])
def inbox(request: pytest.FixtureRequest, context: zmq.Context[zmq.Socket[bytes]], run_root: Path) -> Iterator[Inbox]:
    """An inbox. Each test runs twice: with an IPC endpoint and with a TCP endpoint."""
    run_dir = make_run_dir()
    inbox = Inbox(context, endpoint(run_dir, "w", 0) if request.param == "ipc" else "tcp://127.0.0.1:*")
    yield inbox
    inbox.close()
    context.term()  # only this call removes the socket's file
    os.rmdir(run_dir)


@pytest.fixture
def outbox(context: zmq.Context[zmq.Socket[bytes]], inbox: Inbox) -> Iterator[Outbox]:
    outbox = Outbox(context)
    yield outbox
    outbox.close(linger_ms=0)


def take(inbox: Inbox) -> list[bytes]:
    assert inbox.wait(SECONDS)
    received = inbox.receive()
    assert received is not None
    return [bytes(frame) for frame in received.frames]


def test_run_directory_is_private(run_root: Path) -> None:
    run_dir = make_run_dir()
    assert stat.S_IMODE(os.stat(run_dir).st_mode) == 0o700
    os.rmdir(run_dir)


def test_incarnations_have_addresses_of_their_own() -> None:
    assert endpoint("/run/x", "thinker", 0) != endpoint("/run/x", "thinker", 1)


def test_path_too_long_for_a_socket_is_refused_with_advice() -> None:
    with pytest.raises(StartupError, match="TMPDIR"):
        endpoint("/" + "x" * 100, "thinker", 0)


@pytest.mark.parametrize("sizes", [[0], [1], [10, 0, 100_000], [8_000_000, 8_000_000]], ids=str)
def test_message_arrives_whole(inbox: Inbox, outbox: Outbox, sizes: list[int]) -> None:
    frames = [os.urandom(size) for size in sizes]
    outbox.send(inbox.address, frames)
    assert take(inbox) == frames


def test_messages_of_one_sender_arrive_in_order_and_none_is_lost(inbox: Inbox, outbox: Outbox) -> None:
    count = 20_000  # this number is far above any default high-water mark, and no process reads
    for number in range(count):
        outbox.send(inbox.address, [b"%d" % number])
    assert [take(inbox) for _ in range(count)] == [[b"%d" % number] for number in range(count)]


def test_received_frames_are_read_only_and_own_their_memory(inbox: Inbox, outbox: Outbox) -> None:
    outbox.send(inbox.address, [b"x" * 100_000])
    assert inbox.wait(SECONDS)
    received = inbox.receive()
    assert received is not None
    inbox.close()
    assert received.frames[0].readonly
    assert bytes(received.frames[0]) == b"x" * 100_000


def test_empty_inbox_gives_nothing_at_once(inbox: Inbox) -> None:
    assert inbox.receive() is None
    assert not inbox.wait(0)


def test_drain_takes_no_more_than_asked(inbox: Inbox, outbox: Outbox) -> None:
    for number in range(5):
        outbox.send(inbox.address, [b"%d" % number])
    first = take(inbox)
    rest = [take(inbox) for _ in range(2)]
    assert [first, *rest] == [[b"0"], [b"1"], [b"2"]]
    assert inbox.wait(SECONDS)
    assert len(list(inbox.drain(1))) == 1


def test_sending_before_the_receiver_is_there_waits_for_it(
    context: zmq.Context[zmq.Socket[bytes]], run_root: Path
) -> None:
    run_dir = make_run_dir()
    outbox, address = Outbox(context), endpoint(run_dir, "late", 0)
    outbox.send(address, [b"early"])
    inbox = Inbox(context, address)
    assert take(inbox) == [b"early"]
    inbox.close()
    outbox.close()
    context.term()
    os.rmdir(run_dir)


def test_forgetting_a_dead_receiver_drops_what_waits_for_it(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    outbox = Outbox(context)
    outbox.send("ipc:///nowhere/at/all", [b"x"])
    outbox.forget("ipc:///nowhere/at/all")
    context.term()  # this call would block if a message still waited to be sent
