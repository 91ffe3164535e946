"""Measures the CPU time that a worker's counters and trace notes take for each message and step.

    python scripts/measure_counting.py

A worker runs in a thread of this process, with one stage that only passes messages on. The script sends the same
messages to three variants of the worker: the unchanged worker, a worker that counts nothing, and a worker that writes
notes for traces. For each variant, the script prints the CPU time for one message and its step, including sending and
receiving, in the fastest run. Compare this time with the duration of a real step, which takes milliseconds.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable
from typing import Any

import zmq
from msgspec import Struct

from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.counters import Distribution, Edges
from omni_pipeline.wire.messages import Chunk, Failed, Shutdown, Work
from omni_pipeline.wire.transport import Inbox, Outbox, endpoint, make_run_dir
from omni_pipeline.worker.loop import WorkerLoop
from omni_pipeline.worker.routing import Routing

MESSAGES, RUNS, SECONDS = 2000, 9, 10.0


class Body(Struct):
    """The content of a message: a token."""

    token: int


class Pass:
    """A stage that passes messages on, one in each step."""

    batch: Collection[str] = ()

    def __init__(self) -> None:
        self._queue: deque[Work] = deque()

    @property
    def has_work(self) -> bool:
        return bool(self._queue)

    def receive(self, message: Work) -> None:
        self._queue.append(message)

    def step(self) -> Iterable[Work | Failed]:
        message = self._queue.popleft()
        self.batch = (message.request_id,)
        yield Chunk(message.request_id, "pass", "after", message.body)

    def abort(self, request_id: str) -> None:
        """Do nothing, because the stage keeps no request."""

    def live(self) -> Collection[str]:
        return ("r",)

    def stats(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        """Do nothing, because there is nothing to free."""


class NoEdges(Edges):
    """Edges that count no messages."""

    def add(self, *_: Any) -> None:
        """Do nothing."""


class NoDistribution(Distribution):
    """A distribution that counts no values."""

    def add(self, *_: Any) -> None:
        """Do nothing."""


def measure(*, counted: bool, traced: bool) -> float:
    """Seconds of CPU time for one message and its step."""
    run_dir = make_run_dir()
    context: zmq.Context[Any] = zmq.Context()
    inbox, after = (Inbox(context, endpoint(run_dir, name, 0)) for name in ("w", "after"))
    home = Inbox(context, endpoint(run_dir, "home", 0))
    codec = Codec({("before", "pass"): Body, ("pass", "after"): Body})
    worker = WorkerLoop(
        "w",
        {"pass": Pass()},
        Routing({"after": {0: after.address}}, home.address),
        inbox=inbox,
        outbox=Outbox(context),
        codec=Codec({("before", "pass"): Body}),
        parent=os.getppid(),
        traced=traced,
    )
    if not counted:
        worker._edges = NoEdges()
        worker._stats["pass"].step_seconds = worker._stats["pass"].batch_sizes = NoDistribution.over(())
    outbox = Outbox(context)
    thread = threading.Thread(target=worker.run)
    thread.start()
    best = float("inf")
    for run in range(RUNS):
        begin = time.process_time()
        for number in range(MESSAGES):
            message = Chunk("r", "before", "pass", Body(number), seq=run * MESSAGES + number)
            outbox.send(inbox.address, codec.encode(message))
        for _ in range(MESSAGES):
            if not after.wait(SECONDS):
                raise SystemExit("a message was lost")
            after.receive()
        best = min(best, (time.process_time() - begin) / MESSAGES)
    outbox.send(inbox.address, codec.encode(Shutdown()))
    thread.join()
    for socket in (inbox, after, home):
        socket.close()
    context.destroy(linger=0)
    os.rmdir(run_dir)
    return best


def main() -> None:
    """Measure all three variants, and print their CPU times."""
    ways = {
        "nothing counted": {"counted": False, "traced": False},
        "as it is": {"counted": True, "traced": False},
        "with notes": {"counted": True, "traced": True},
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(3):
        for name, way in ways.items():
            best[name] = min(best[name], measure(**way))
    for name, seconds in best.items():
        print(f"{name:16} {seconds * 1e6:.2f} µs for each message and step")


if __name__ == "__main__":
    main()
