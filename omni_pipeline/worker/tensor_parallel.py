"""Runs one stage in several processes, each with a part of the model (tensor parallelism).

The stage's worker is rank 0. Rank 0 starts the other ranks, which are called followers. Before rank 0 handles a message
or an abort, it sends the same message or abort to all followers. Before rank 0 computes a step, it orders all followers
to compute this step too. Each follower has one socket, so all followers receive the same sequence of messages, aborts
and steps. The behaviour of a stage must depend only on messages, aborts and steps. Then the stage does the same work in
every rank, and all ranks take part in the collective operations of each step. A follower blocks until a message
arrives. The output of followers is dropped, because rank 0 sends the same output.

Ranks end together: a follower ends when its worker ends, and a worker ends when any of its followers ends.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Any

from omni_pipeline.contract.stage import AdvisedStage, Ranks, Stage, StageBroken
from omni_pipeline.os_process import free_port
from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.messages import Abort, Advice, Claim, Failed, Message, Paused, Shutdown, Step, Work
from omni_pipeline.wire.transport import Inbox, Outbox

# If a follower cannot load, rank 0 has this number of seconds to fail too and to report the reason. After this time,
# rank 0 is ended.
GRACE_SECONDS = 10.0

# Maximum time, in seconds, that a follower may take to exit before it is killed.
LEAVE_SECONDS = 5.0

# Maximum number of messages to read at a time.
DRAIN_MESSAGES = 256

logger = logging.getLogger(__name__)


class Leader:
    """The stage in rank 0, which also controls its followers. `contract.stage.Stage` describes the methods.

    Args:
        build: Builds the stage of rank 0. The call returns when all ranks have built their stages.
        size: Number of ranks.
        launch: Starts the process of another rank. Returns the process and the endpoint of its inbox.
        outbox: The process's sockets.
        codec: Encodes messages for the edges of the graph.
    """

    def __init__(
        self,
        build: Callable[[Ranks], Stage],
        size: int,
        launch: Callable[[Ranks], tuple[subprocess.Popen[bytes], str]],
        outbox: Outbox,
        codec: Codec,
    ) -> None:
        self._outbox = outbox
        self._codec = codec
        self._closing = threading.Event()
        self._loaded = False
        port = free_port()
        launched = [launch(Ranks(rank, size, port)) for rank in range(1, size)]
        self._processes = [process for process, _ in launched]
        self._addresses = [address for _, address in launched]
        # A separate thread waits for the end of a follower. The main thread cannot wait, because it may be in a
        # collective operation that never ends.
        threading.Thread(target=self._watch, name="watch followers", daemon=True).start()
        try:
            self._stage = build(Ranks(0, size, port))
        except BaseException:
            self._closing.set()
            self._end_followers()
            raise
        self._loaded = True

    @property
    def pids(self) -> list[int]:
        """Process ids of the followers."""
        return [process.pid for process in self._processes]

    @property
    def has_work(self) -> bool:
        return self._stage.has_work

    @property
    def batch(self) -> Collection[str]:
        return self._stage.batch

    def receive(self, message: Work) -> None:
        self._tell(message)
        self._stage.receive(message)

    def step(self) -> Iterable[Work | Failed | Claim | Paused | Advice[Any]]:
        self._tell(Step())
        try:
            return list(self._stage.step())
        except Exception as error:
            # After an error, the ranks cannot continue together, because each of the other ranks may be at a different
            # point of the step.
            raise StageBroken(f"a step failed, and the {len(self._processes) + 1} ranks cannot continue") from error

    def advise(self, advice: Advice[Any]) -> None:
        if isinstance(self._stage, AdvisedStage):
            self._tell(advice)
            self._stage.advise(advice)

    def abort(self, request_id: str) -> None:
        self._tell(Abort(request_id))
        self._stage.abort(request_id)

    def live(self) -> Collection[str]:
        return self._stage.live()

    def stats(self) -> dict[str, float]:
        return self._stage.stats()

    def close(self) -> None:
        self._closing.set()
        self._tell(Shutdown())
        self._stage.close()
        self._end_followers()

    def _tell(self, message: Message) -> None:
        frames = self._codec.encode(message)
        for address in self._addresses:
            self._outbox.send(address, frames)

    def _end_followers(self) -> None:
        for process in self._processes:
            try:
                process.wait(LEAVE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _watch(self) -> None:
        """End this process when a follower ends without an order to end."""
        ends = [os.pidfd_open(process.pid) for process in self._processes]
        try:
            select.select(ends, [], [])
        finally:
            for end in ends:
                os.close(end)
        if not self._closing.wait(0 if self._loaded else GRACE_SECONDS):
            logger.error("a rank of this worker has ended, so the worker ends too")
            os._exit(1)


def follow(stage: Stage, inbox: Inbox, codec: Codec) -> None:
    """The loop of a follower. The follower does the same work as the leader until the leader sends a `Shutdown`.

    Raises:
        Exception: a step failed.
    """
    while True:
        inbox.wait(None)
        for received in inbox.drain(DRAIN_MESSAGES):
            match codec.decode(received.frames):
                case Step():
                    for _ in stage.step():
                        pass
                case Abort(request_id=request_id):
                    stage.abort(request_id)
                case Advice() as advice:
                    if isinstance(stage, AdvisedStage):
                        stage.advise(advice)
                case Shutdown():
                    return
                case message:
                    _receive(stage, message)


def _receive(stage: Stage, message: Message) -> None:
    try:
        stage.receive(message)  # type: ignore[arg-type]
    except Exception:  # rank 0 gets the same error, and reports it
        logger.debug("refused", exc_info=True)
