"""The loop of every worker. Receives messages, calls the stages, and sends the results.

One thread does everything. While no stage has work, the thread sleeps until a message arrives, or until a process that
works for a stage answers. While a stage has work, the thread never waits for messages. Messages between stages of the
same worker are passed by reference.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from collections.abc import Container, Mapping
from typing import Any

from msgspec import structs

from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.contract.stage import AdvisedStage, ClaimingStage, Stage, StageBroken, TimedStage, WaitsOutside
from omni_pipeline.errors import ErrorInfo, OmniError, internal, worker_lost
from omni_pipeline.logs import fields
from omni_pipeline.wire.codec import Codec, WireError
from omni_pipeline.wire.counters import Edges
from omni_pipeline.wire.messages import (
    Abort,
    Advice,
    Chunk,
    Claim,
    End,
    Failed,
    Forgotten,
    Granted,
    Heartbeat,
    Message,
    Moved,
    Shutdown,
    StageStats,
    Start,
    Work,
)
from omni_pipeline.wire.stream_numbers import ReceiveLedger, SendLedger
from omni_pipeline.wire.tensor import Buffer
from omni_pipeline.wire.trace_notes import Notes
from omni_pipeline.wire.transport import Inbox, Outbox, Received
from omni_pipeline.worker.recorder import Recorder

HEARTBEAT_SECONDS = 1.0

# Maximum time, in seconds, from an abort to the next heartbeat, whose counters show the freed resources. Also the time
# after which the loop checks again whether a stage still holds an aborted request.
SHOW_SECONDS = 0.1

# Maximum number of messages to handle between two steps, so that a flood of messages cannot stop the stages.
DRAIN_MESSAGES = 256

# Number of ended requests whose ids are kept, in order to recognise late messages for them. The number is far larger
# than the number of requests in flight.
TOMBSTONES = 16_384

logger = logging.getLogger(__name__)


class WorkerLoop:
    """Drives the stages of one process.

    Args:
        name, incarnation: The worker's name and its number of earlier processes, for heartbeats.
        stages: The stages by name, in graph order.
        addresses: Endpoint of each other stage's process, by stage, and of the main process under `COLLECTOR`.
        inbox, outbox: The process's sockets; the caller closes them.
        codec: Encodes and decodes messages for the edges of the graph.
        epoch: The last `wire.messages.Moved.epoch` that `addresses` already reflects.
        parent: Process id of the parent; the worker ends when the parent does.
        traced: Whether to record notes for traces of requests.
    """

    def __init__(
        self,
        name: str,
        stages: Mapping[str, Stage],
        addresses: Mapping[str, str],
        *,
        inbox: Inbox,
        outbox: Outbox,
        codec: Codec,
        parent: int,
        incarnation: int = 0,
        epoch: int = 0,
        traced: bool = False,
    ) -> None:
        self._name = name
        self._incarnation = incarnation
        self._epoch = epoch
        self._stages = stages
        self._wakers = [stage.waits_on for stage in stages.values() if isinstance(stage, WaitsOutside)]
        self._timed = [stage for stage in stages.values() if isinstance(stage, TimedStage)]
        self._addresses = dict(addresses)
        self._inbox = inbox
        self._outbox = outbox
        self._codec = codec
        self._parent = parent
        # pairs of a message and the time at which the stage sent the message
        self._local: deque[tuple[Work, float]] = deque()
        # encoded messages of the current step, keyed by the receiver's address
        self._parcels: dict[str, list[list[Buffer]]] = {}
        self._sent = SendLedger()
        self._received = ReceiveLedger()
        self._ended: dict[str, None] = {}
        self._downstream = [
            target
            for source, target in codec.edges
            if source in stages and target not in stages and target in addresses and target != COLLECTOR
        ]
        self._unanswered: list[Abort] = []  # aborts for which `Forgotten` has not been sent yet
        self._stats = {stage: StageStats() for stage in stages}
        self._edges = Edges()
        self._recorder = Recorder(name, stages) if traced else None
        self._next_beat = time.monotonic()
        self._stopping = False

    def run(self) -> None:
        """Serve until a `Shutdown` arrives or the parent has ended.

        Raises:
            StageBroken: a stage cannot continue. Its requests have already ended with an error.
        """
        while not self._stopping:
            self._take_in()
            for name, stage in self._stages.items():
                if stage.has_work:
                    self._step(name, stage)
                self._hand_over()
            if self._unanswered:
                self._answer_aborts()
            if self._recorder is not None and self._recorder.many:
                self._tell_notes()
            if time.monotonic() >= self._next_beat:
                self._beat()

    # --- in ---

    def _take_in(self) -> None:
        if not any(stage.has_work for stage in self._stages.values()):
            now = time.monotonic()
            until = min(self._next_beat, *(at for stage in self._timed if (at := stage.wakes_at) is not None), math.inf)
            seconds = max(until - now, 0.0)
            self._inbox.wait(min(seconds, SHOW_SECONDS) if self._unanswered else seconds, self._wakers)
        for received in self._inbox.drain(DRAIN_MESSAGES):
            try:
                message = self._codec.decode(received.frames)
            except WireError as error:
                logger.error("unreadable message: %s", error, extra=fields(answer_id=error.request_id))
                if error.request_id is not None:
                    self._fail(error.request_id, internal("A message between stages could not be read.").info, "")
                continue
            self._handle(message, received)

    def _handle(self, message: Message, received: Received) -> None:
        match message:
            case Start() | Chunk() | End() if message.target in self._stages:
                self._deliver(message, received.sent, received.size)
            case Abort():
                self._take_abort(message)
            case Granted() if isinstance(stage := self._stages.get(message.target), ClaimingStage):
                stage.grant(message.request_id)
            case Advice() if message.target in self._stages:
                self._advise(message)
            case Moved():
                self._redirect(message)
            case Shutdown():
                self._report()
                self._stopping = True
            case _:
                # the log must not contain the content of a message
                logger.error("misdirected message: a %s", type(message).__name__)

    def _advise(self, advice: Advice[Any]) -> None:
        stage = self._stages[advice.target]
        assert isinstance(stage, AdvisedStage)
        stage.advise(advice)

    def _take_abort(self, abort: Abort) -> None:
        """Forget a request. If the abort comes from the main process, pass it on, after all earlier messages of the
        request.
        """
        if abort.request_id not in self._ended:
            self._forget(abort.request_id)
        if not abort.sender:
            passed = [self._codec.encode(Abort(abort.request_id, self._name))]
            for address in {self._addresses[stage] for stage in self._downstream}:
                self._outbox.send(address, *passed)
        self._unanswered.append(abort)
        self._next_beat = min(self._next_beat, time.monotonic() + SHOW_SECONDS)

    def _answer_aborts(self) -> None:
        """Answer the aborts of requests that no stage holds any more.

        An engine frees an aborted request in its next step, so call this method after a step.
        """
        held = {request_id for stage in self._stages.values() for request_id in stage.live()}
        free = [abort for abort in self._unanswered if abort.request_id not in held]
        self._unanswered = [abort for abort in self._unanswered if abort.request_id in held]
        answers = [Forgotten(abort.request_id, self._name, abort.sender) for abort in free]
        if answers:
            self._outbox.send(self._addresses[COLLECTOR], *map(self._codec.encode, answers))

    def _redirect(self, moved: Moved) -> None:
        """Disconnect from a process that has ended, and fail the requests whose streams are left incomplete."""
        error = worker_lost(moved.worker).info
        for ledger in (self._received, self._sent):
            for request_id in ledger.open_with(moved.stages):
                self._fail(request_id, error, moved.stages[0])
        for stage in moved.stages:
            self._outbox.forget(self._addresses[stage])
            self._addresses[stage] = moved.address
        self._epoch = moved.epoch
        self._next_beat = time.monotonic()  # send a heartbeat now: the main process waits for one with this epoch

    def _hand_over(self) -> None:
        while self._local:
            message, given = self._local.popleft()
            self._deliver(message, given, 0)

    def _deliver(self, message: Work, sent: float, size: int) -> None:
        """Give a stage a message of `size` bytes that was sent at the time `sent`."""
        name, request_id = message.target, message.request_id
        stage, stats = self._stages[name], self._stats[name]
        if request_id in self._ended:
            stats.dropped_late += 1
            return
        taken = time.monotonic()
        stats.received += 1
        self._edges.add(message.source, name, size, taken - sent)
        try:
            self._received.check(message)
            stage.receive(message)
        except OmniError as error:
            self._fail(request_id, error.info, name)
        except StageBroken:
            for lost in (request_id, *stage.live()):
                self._fail(lost, _bug(name), name)
            raise
        except Exception:
            logger.exception("%s could not take a message", name, extra=fields(answer_id=request_id))
            self._fail(request_id, _bug(name), name)
        done = time.monotonic()
        stats.busy_seconds += done - taken
        if self._recorder is not None:
            self._recorder.took(message, sent, taken, done)

    # --- work ---

    def _step(self, name: str, stage: Stage) -> None:
        stats = self._stats[name]
        failed: dict[str, ErrorInfo] = {}
        broken: StageBroken | None = None
        told: set[str] = set()
        begin = time.monotonic()
        try:
            for message in stage.step():
                if isinstance(message, Advice):
                    self._send_advice(message)
                    continue
                told.add(message.request_id)
                error = self._route(name, message, failed)
                if error is not None:
                    failed[message.request_id] = error
        except Exception as error:
            logger.exception("%s failed in a step", name)
            failed = {**dict.fromkeys(stage.live(), _bug(name)), **failed}
            broken = error if isinstance(error, StageBroken) else None
        self._post()
        end = time.monotonic()
        stats.steps += 1
        stats.busy_seconds += end - begin
        stats.step_seconds.add(end - begin)
        if stage.batch:
            stats.batch_sizes.add(len(stage.batch))
        # a step that only exchanges bytes with other processes is not recorded
        if self._recorder is not None and (told or stage.batch):
            self._recorder.stepped(name, told.union(stage.batch), begin, end)
        # Errors are handled only now, because a stage must not be asked to abort a request during its step.
        for request_id, info in failed.items():
            self._fail(request_id, info, name)
        if broken is not None:
            raise broken

    # --- out ---

    def _send_advice(self, advice: Advice[Any]) -> None:
        if advice.target in self._stages:
            self._advise(advice)
        else:
            self._post_later(advice)

    def _route(self, name: str, message: Work | Failed | Claim, failed: Container[str]) -> ErrorInfo | None:
        """Send a message from a stage. Returns the error with which the request must end, if any."""
        if message.request_id in failed or message.request_id in self._ended:
            return None
        if isinstance(message, Failed):
            return message.error
        if isinstance(message, Claim):
            self._tell(message)
            return None
        try:
            self._sent.stamp(message)
            if message.target in self._stages:
                self._local.append((message, time.monotonic()))
            else:
                self._post_later(message)
        except Exception:  # a bug in the stage: a body that cannot be encoded, or an unknown target
            logger.exception("%s gave a message that cannot be sent", name, extra=fields(answer_id=message.request_id))
            return _bug(name)
        self._stats[name].sent += 1
        return None

    def _post_later(self, message: Work | Advice[Any]) -> None:
        parcel = self._parcels.setdefault(self._addresses[message.target], [])
        parcel.append(self._codec.encode(message))

    def _post(self) -> None:
        """Send the step's messages for other processes."""
        for address, messages in self._parcels.items():
            self._outbox.send(address, *messages)
        self._parcels.clear()

    def _fail(self, request_id: str, error: ErrorInfo, stage: str) -> None:
        """Report an error to the main process, which ends the request in all other workers. Forget the request in this
        worker.
        """
        if request_id in self._ended:
            return
        error = structs.replace(error, stage=error.stage or stage)
        self._tell(Failed(request_id, stage, error))
        self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        self._ended[request_id] = None
        if len(self._ended) > TOMBSTONES:
            del self._ended[next(iter(self._ended))]
        for stage in self._stages.values():
            stage.abort(request_id)
        if any(message.request_id == request_id for message, _ in self._local):
            self._local = deque(entry for entry in self._local if entry[0].request_id != request_id)
        self._sent.forget(request_id)
        self._received.forget(request_id)

    def _beat(self) -> None:
        self._next_beat = time.monotonic() + HEARTBEAT_SECONDS
        if os.getppid() != self._parent:
            logger.error("the parent process is gone")
            self._stopping = True
            return
        self._report()

    def _report(self) -> None:
        for name, stage in self._stages.items():
            stats = self._stats[name]
            stats.live_requests = len(stage.live())
            stats.extra = stage.stats()
        self._tell_notes()
        self._tell(Heartbeat(self._name, self._incarnation, self._stats, self._edges.all(), self._epoch))

    def _tell_notes(self) -> None:
        if self._recorder is not None:
            live = {name: stage.live() for name, stage in self._stages.items()}
            self._tell(self._recorder.take(time.monotonic(), live))

    def _tell(self, message: Failed | Claim | Heartbeat | Notes) -> None:
        self._outbox.send(self._addresses[COLLECTOR], self._codec.encode(message))


def _bug(stage: str) -> ErrorInfo:
    return internal(f"The {stage} stage failed unexpectedly.").info
