"""A stage whose work several processes share, each with a part of the model (tensor parallelism).

The stage's worker is rank 0. It starts the others, the followers, and passes every message, abort and step on to them
before it takes it itself, in one order over one socket each. A stage whose course depends on nothing else then does the
same in every rank, and they meet in the collective operations of each step. Followers block while nothing comes; what
their stage gives is dropped, since rank 0 gives the same.

Ranks live and die together: a follower ends with its worker, and a worker with any of its followers.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import threading
from collections.abc import Callable, Collection, Iterable

from omni_pipeline.contract.stage import Ranks, Stage, StageBroken
from omni_pipeline.os_process import free_port
from omni_pipeline.wire.messages import Abort, Codec, Failed, Message, Shutdown, Step, Work
from omni_pipeline.wire.transport import Inbox, Outbox

# How long rank 0 may take to say why it cannot load either, before a follower that could not ends it.
GRACE_SECONDS = 10.0

# How long followers may take to leave.
LEAVE_SECONDS = 5.0

# Messages taken in at a time.
DRAIN_MESSAGES = 256

logger = logging.getLogger(__name__)


class Leader:
    """Rank 0's side: a stage that takes its followers along. See `stage.Stage` for the methods.

    Args:
        build: Makes the stage of a rank, in this process that of rank 0. It returns when all ranks have theirs.
        size: Number of ranks.
        launch: Starts the process of another rank; gives it, and the endpoint of its inbox.
        outbox: The process's sockets.
        codec: For the edges of the graph.
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
        # It only waits: a rank that is lost leaves this thread's peers in an operation that never ends.
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

    def step(self) -> Iterable[Work | Failed]:
        self._tell(Step())
        try:
            return list(self._stage.step())
        except Exception as error:
            # Nobody knows how far the other ranks are.
            raise StageBroken(f"a step of {len(self._processes) + 1} ranks failed") from error

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
        """End this process when a follower ends that was not told to."""
        ends = [os.pidfd_open(process.pid) for process in self._processes]
        try:
            select.select(ends, [], [])
        finally:
            for end in ends:
                os.close(end)
        if not self._closing.wait(0 if self._loaded else GRACE_SECONDS):
            logger.error("a rank of this worker has ended, and so the worker does")
            os._exit(1)


def follow(stage: Stage, inbox: Inbox, codec: Codec) -> None:
    """A follower's side: do what the leader does until it says that it is over.

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
                case Shutdown():
                    return
                case message:
                    _receive(stage, message)


def _receive(stage: Stage, message: Message) -> None:
    try:
        stage.receive(message)  # type: ignore[arg-type]
    except Exception:  # rank 0 has met the same, and says so
        logger.debug("refused", exc_info=True)
