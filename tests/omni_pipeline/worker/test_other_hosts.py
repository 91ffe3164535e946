"""The worker loop and other hosts: who may send which message, lost connections, and clocks. Each host is simulated by
its own ZeroMQ context.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from omni_pipeline.contract.graph import COLLECTOR, GATEWAY
from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.host_messages import ClockOffset, ConnectionLost, KnownHosts
from omni_pipeline.wire.keys import new_key_pair
from omni_pipeline.wire.messages import Advice, Chunk, Heartbeat, Message, Moved, Shutdown, Start
from omni_pipeline.wire.trace_notes import Notes, Stepped, Took
from omni_pipeline.worker.loop import WorkerLoop
from omni_pipeline.worker.routing import Routing
from tests.omni_pipeline.echo_stages import ECHO, EchoStage, Shout, Split, Text, Word
from tests.omni_pipeline.wire.hosts import SECONDS, Host
from tests.omni_pipeline.worker.test_loop import context_of


class Times(Struct):
    """The body of an `Advice` message, with a time."""

    at: float

    def shifted(self, seconds: float) -> Times:
        return Times(self.at + seconds)


class Timed(EchoStage):
    """Keeps the bodies of the `Advice` messages that it gets."""

    def __init__(self, name: str) -> None:
        super().__init__(context_of(name))
        self.name = name
        self.taken: list[Times] = []
        self.arrived = threading.Event()

    def advise(self, advice: Advice[Times]) -> None:
        self.taken.append(advice.body)
        self.arrived.set()


class Sending(Split):
    """Sends an `Advice` message with a time before it sends its words."""

    def step(self) -> Any:
        yield Advice("split", "shout", Times(100.0))
        yield from super().step()


class Site:
    """A worker on the host `b` with one stage, and the processes of two other hosts: the main process, and a worker on
    the host `c` with all other stages.
    """

    def __init__(self, directory: Path, stage: str, made: EchoStage) -> None:
        self.keys = {name: new_key_pair() for name in ("main", "b", "c")}
        known = {name: keys.public for name, keys in self.keys.items()}
        self.main, self.b, self.c = (Host(directory, name, known, keys=self.keys[name]) for name in self.keys)
        self.codec = Codec(ECHO.body_types(), {("split", "shout"): Times})
        others = {name: {0: self.c.inbox.remote_address} for name in ECHO.stage_names if name != stage}
        self.worker = WorkerLoop(
            "w",
            {stage: made},
            Routing(others, self.main.inbox.remote_address),
            inbox=self.b.inbox,
            outbox=self.b.outbox,
            codec=Codec(ECHO.body_types(), {("split", "shout"): Times}),
            parent=os.getppid(),
            incarnation=7,
            network=self.b.network,
        )
        self.thread = threading.Thread(target=self.worker.run)
        self.thread.start()

    def send(self, host: Host, *messages: Message) -> None:
        host.outbox.send(self.b.inbox.remote_address, *map(self.codec.encode, messages))

    def next(self, host: Host, *kinds: type[Any]) -> Any:
        """The next message of one of these kinds that arrives at a host."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            message = self.codec.decode(host.take().frames)
            if isinstance(message, kinds):
                return message
        raise AssertionError(f"no {kinds} has arrived")

    def close(self) -> None:
        if self.thread.is_alive():
            self.send(self.main, Shutdown())
            self.thread.join(SECONDS)
        assert not self.thread.is_alive()
        for host in (self.main, self.b, self.c):
            host.close()


@pytest.fixture
def shouting(run_root: Path) -> Iterator[Site]:
    directory = run_root / "sockets"
    directory.mkdir()
    site = Site(directory, "shout", Shout(context_of("shout")))
    yield site
    site.close()
    directory.rmdir()


def test_only_the_main_process_may_move_and_stop_workers(shouting: Site, caplog: pytest.LogCaptureFixture) -> None:
    forged: list[Message] = [
        Moved("x", ["join"], "ipc:///tmp/attacker", 5),
        KnownHosts({"attacker": new_key_pair().public}),
        ClockOffset(1e6),
        Shutdown(),
    ]
    shouting.send(shouting.c, *forged)
    # The messages of different senders arrive in any order.
    refusals = [
        f"host c sent a message of the type {type(message).__name__}, which only the main process may send"
        for message in forged
    ]
    deadline = time.monotonic() + 30
    while not all(refusal in caplog.text for refusal in refusals) and time.monotonic() < deadline:
        shouting.next(shouting.main, Heartbeat)
    for refusal in refusals:
        assert refusal in caplog.text
    # Everything that the main process sends afterwards still works.
    shouting.send(shouting.main, Moved("w2", ["join"], shouting.c.inbox.remote_address, 3))
    while shouting.next(shouting.main, Heartbeat).epoch != 3:
        pass
    assert shouting.thread.is_alive()
    assert shouting.b.network.offset == 0.0
    assert shouting.b.network.host_of(shouting.keys["c"].public) == "c"


def test_a_host_that_the_main_process_has_removed_delivers_nothing(shouting: Site) -> None:
    known = {name: keys.public for name, keys in shouting.keys.items() if name != "c"}
    shouting.send(shouting.main, KnownHosts(known))
    while shouting.b.network.host_of(shouting.keys["c"].public) is not None:
        shouting.next(shouting.main, Heartbeat)
    shouting.send(shouting.c, Chunk("r", "split", "shout", Word("a", []), seq=0))
    beat = shouting.next(shouting.main, Heartbeat)
    beat = shouting.next(shouting.main, Heartbeat)
    assert beat.stats["shout"].received == 0


def test_a_lost_connection_to_a_worker_is_reported_and_made_again(shouting: Site) -> None:
    shouting.send(shouting.c, Chunk("r", "split", "shout", Word("a", []), seq=0))
    shouting.next(shouting.c, Chunk)
    shouting.c.close()
    lost = shouting.next(shouting.main, ConnectionLost)
    assert (lost.worker, lost.incarnation, lost.replica) == ("w", 7, 0)
    assert set(lost.stages) == {"split", "join"}


def test_a_lost_connection_to_the_main_process_is_reported_over_a_new_one(run_root: Path) -> None:
    directory = run_root / "sockets"
    directory.mkdir()
    site = Site(directory, "shout", Shout(context_of("shout")))
    port = site.main.port
    site.next(site.main, Heartbeat)
    site.main.close()
    known = {name: keys.public for name, keys in site.keys.items()}
    site.main = Host(directory, "main2", known, keys=site.keys["main"], ports=(port, port))
    lost = site.next(site.main, ConnectionLost)
    assert lost.stages == []
    site.close()
    directory.rmdir()


def test_times_in_advice_are_converted_between_clocks(run_root: Path) -> None:
    directory = run_root / "sockets"
    directory.mkdir()
    stage = Timed("shout")
    site = Site(directory, "shout", stage)
    site.send(site.main, ClockOffset(1000.0))
    while site.b.network.offset == 0.0:
        site.next(site.main, Heartbeat)
    # on the wire, times are by the clock of the main host
    site.send(site.c, Advice("split", "shout", Times(1100.0)))
    assert stage.arrived.wait(SECONDS)
    assert stage.taken[-1].at == pytest.approx(100.0)
    site.close()
    directory.rmdir()


def test_times_in_sent_advice_are_by_the_clock_of_the_main_host(run_root: Path) -> None:
    directory = run_root / "sockets"
    directory.mkdir()
    site = Site(directory, "split", Sending(context_of("split")))
    site.send(site.main, ClockOffset(1000.0), Start("r", GATEWAY, "split", Text("a b")))
    assert site.next(site.c, Advice).body.at == pytest.approx(1100.0)
    site.close()
    directory.rmdir()


def test_notes_are_converted_to_another_clock() -> None:
    took = Took("r", "a", COLLECTOR, 1.0, 2.0, 3.0)
    stepped = Stepped("a", 4.0, 5.0, ["r"], [6.0], [7.0], 2)
    found = Notes("w", 8.0, [took], [stepped]).shifted(10.0)
    assert found == Notes(
        "w", 18.0, [Took("r", "a", COLLECTOR, 11.0, 12.0, 13.0)], [Stepped("a", 14.0, 15.0, ["r"], [16.0], [17.0], 2)]
    )
