#!/usr/bin/env python3
"""Measures how long a message takes from one process to another, within a host and between hosts.

    python scripts/measure_hop.py

Two processes run on this machine. The first process sends a message, and the second process sends it back. A *hop* is
half of the time until the message is back. There are three transports: ipc, which connects processes of one host; TCP;
and TCP with CURVE, which connects hosts. The processes use all transports in turn, so that other load on the machine
affects each transport equally. For each transport, the script prints the median hop, the fastest hop, and the ratio of
the median hop to the median hop of ipc. There is no network between the processes. Between real hosts, a hop also
includes the time on the network.

The exit status is 1 if the median hop of a small message over TCP with CURVE takes more than 150 µs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import zmq
from msgspec import Struct

from omni_pipeline.wire.keys import KeyPair, new_key_pair
from omni_pipeline.wire.network import HostLink, Network
from omni_pipeline.wire.transport import Inbox, Outbox, endpoint, make_run_dir

TRANSPORTS = ("ipc", "tcp", "tcp + CURVE")
SIZES = {"1 KiB": 1024, "8 MiB": 8 * 1024 * 1024}
MOST_SECONDS = 150e-6
"""The maximum median hop of the smallest message over TCP with CURVE."""

SECONDS = 10.0


class Hop(Struct, frozen=True):
    """The median and the fastest hop, in seconds."""

    median: float
    fastest: float


class End:
    """One of the two processes: an inbox for each transport. `peer` is the public key of the other process."""

    def __init__(self, run_dir: str, name: str, keys: KeyPair, peer: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._network = Network(self._context, HostLink(name, keys, "127.0.0.1", (0, 0), {"peer": peer}, 5.0))
        self._outboxes = (Outbox(self._context), Outbox(self._context, self._network))
        secure = Inbox(self._context, endpoint(run_dir, f"{name}-secure", 0), self._network)
        local = Inbox(self._context, endpoint(run_dir, name, 0))
        self.inboxes = {"ipc": local, "tcp": Inbox(self._context, "tcp://127.0.0.1:*"), "tcp + CURVE": secure}
        self.addresses = {name: inbox.remote_address or inbox.address for name, inbox in self.inboxes.items()}

    def send(self, transport: str, address: str, frames: Sequence[memoryview]) -> None:
        self._outboxes[transport == "tcp + CURVE"].send(address, frames)

    def take(self, transport: str) -> list[memoryview]:
        while self.inboxes[transport].wait(SECONDS):
            if received := self.inboxes[transport].receive():
                return received.frames
        raise SystemExit(f"a message over {transport} was lost")

    def close(self) -> None:
        for inbox in self.inboxes.values():
            inbox.close()
        for outbox in self._outboxes:
            outbox.close()
        self._network.close()
        self._context.term()


def echo(run_dir: str, keys: KeyPair, peer: str, pipe: Connection) -> None:
    """Run the other process. It returns each message over the transport on which the message came. Each order from
    `pipe` has a transport and the number of messages to return.
    """
    end = End(run_dir, "b", keys, peer)
    pipe.send(end.addresses)
    addresses: dict[str, str] = pipe.recv()
    while (order := pipe.recv()) is not None:
        transport, count = order
        for _ in range(count):
            end.send(transport, addresses[transport], end.take(transport))
    end.close()


def measure(size: int, rounds: int, hops: int) -> dict[str, Hop]:
    """The hops of a message of `size` bytes. In each round, each transport carries `hops` messages."""
    run_dir = make_run_dir()
    keys, other = new_key_pair(), new_key_pair()
    spawn = multiprocessing.get_context("spawn")
    pipe, far_pipe = spawn.Pipe()
    child = spawn.Process(target=echo, args=(run_dir, other, keys.public, far_pipe))
    child.start()
    end = End(run_dir, "a", keys, other.public)
    addresses: dict[str, str] = pipe.recv()
    pipe.send(end.addresses)
    frames = [memoryview(os.urandom(size))]
    times: dict[str, list[float]] = {transport: [] for transport in TRANSPORTS}
    for number in range(rounds + 1):
        for transport, found in times.items():
            pipe.send((transport, hops))
            for _ in range(hops):
                begin = time.perf_counter()
                end.send(transport, addresses[transport], frames)
                end.take(transport)
                if number:  # the first round makes the connections
                    found.append((time.perf_counter() - begin) / 2)
    pipe.send(None)
    child.join()
    end.close()
    os.rmdir(run_dir)
    return {transport: Hop(statistics.median(found), min(found)) for transport, found in times.items()}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="how often to use each transport")
    parser.add_argument("--hops", type=int, default=100, help="small messages in each round (large: 20 times fewer)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    print("| size | transport | median | fastest | median, relative to ipc |", "|---|---|---|---|---|", sep="\n")
    slow = False
    for name, size in SIZES.items():
        small = name == "1 KiB"
        found = measure(size, options.rounds, options.hops if small else max(1, options.hops // 20))
        for transport, hop in found.items():
            ratio = hop.median / found["ipc"].median
            print(f"| {name} | {transport} | {hop.median * 1e6:.0f} µs | {hop.fastest * 1e6:.0f} µs | {ratio:.2f} |")
        slow |= small and found["tcp + CURVE"].median > MOST_SECONDS
    if slow:
        print(f"a small message over TCP with CURVE takes more than {MOST_SECONDS * 1e6:.0f} µs")
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
