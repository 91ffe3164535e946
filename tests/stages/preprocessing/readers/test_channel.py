"""A channel carries any number of frames of any size, never blocks, and survives a sender that sends invalid data."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from stages.preprocessing.readers.channel import MOST_BYTES, Channel, receive_all, send_all


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    yield channel, theirs
    channel.close()
    theirs.close()


def received(channel: Channel, count: int) -> list[list[bytes]]:
    messages: list[list[bytes]] = []
    while len(messages) < count:
        channel.flush()
        messages += [[bytes(frame) for frame in frames] for frames in channel.receive()]
    return messages


@pytest.mark.parametrize("frames", [[], [b""], [b"a", b"", b"bc"], [b"x" * 3_000_000, b"y"], [b"z"] * 2000])
def test_messages_go_both_ways(ends: tuple[Channel, socket.socket], frames: list[bytes]) -> None:
    channel, theirs = ends
    echoed: list[list[bytes]] = []

    def echo() -> None:
        for _ in range(2):
            message = receive_all(theirs)
            echoed.append([bytes(frame) for frame in message])
            send_all(theirs, message)

    thread = threading.Thread(target=echo)
    thread.start()
    channel.send(frames)
    channel.send(frames)
    assert received(channel, 2) == [frames, frames] == echoed
    thread.join()


def test_neither_sending_nor_receiving_waits(ends: tuple[Channel, socket.socket]) -> None:
    channel, theirs = ends
    channel.send([b"x" * 10_000_000])
    channel.flush()
    assert channel.has_output
    theirs.send(b"\1\0\0\0")
    assert list(channel.receive()) == []
    assert not channel.ended


def test_one_call_takes_in_a_bounded_part_of_a_large_message(ends: tuple[Channel, socket.socket]) -> None:
    channel, theirs = ends
    thread = threading.Thread(target=send_all, args=(theirs, [b"x" * (3 * MOST_BYTES)]))
    thread.start()
    calls = 0
    while not list(channel.receive()):
        calls += 1
    assert calls >= 3
    thread.join()


@pytest.mark.parametrize("last", ["ends", "out of its mind"])
def test_end_is_noticed_and_complete_messages_are_kept(ends: tuple[Channel, socket.socket], last: str) -> None:
    channel, theirs = ends
    send_all(theirs, [b"whole"])
    if last == "ends":
        theirs.send(b"\1\0\0\0")
        theirs.close()
    else:
        theirs.send(b"\xff" * 100)
    assert received(channel, 1) == [[b"whole"]]
    assert channel.ended
    channel.send([b"more"])
    channel.flush()
    assert not channel.has_output
