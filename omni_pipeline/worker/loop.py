"""The loop of every worker. Receives messages, calls the stages, and sends the results.

One thread does all work. While no stage has work, the thread sleeps until a message arrives, or until a process that
works for a stage answers. The thread also wakes up for heartbeats, and at the times that a `TimedStage` requests. While
a stage has work, the thread never waits for messages. Messages between stages of the same worker are passed by
reference.
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
from omni_pipeline.contract.stage import (
    AdvisedStage,
    ClaimingStage,
    PatientStage,
    Stage,
    StageBroken,
    TimedAdvice,
    TimedStage,
    UrgentStage,
    WaitsOutside,
)
from omni_pipeline.errors import ErrorInfo, OmniError, internal, worker_lost
from omni_pipeline.logs import fields
from omni_pipeline.wire.codec import Codec, WireError
from omni_pipeline.wire.counters import Edges
from omni_pipeline.wire.host_messages import ClockOffset, ConnectionLost, KnownHosts
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
    Paused,
    Shutdown,
    StageStats,
    Start,
    Work,
)
from omni_pipeline.wire.network import Network
from omni_pipeline.wire.stream_numbers import ReceiveLedger, SendLedger, is_first
from omni_pipeline.wire.tensor import Buffer
from omni_pipeline.wire.trace_notes import Notes
from omni_pipeline.wire.transport import MAIN, Inbox, Outbox, Received
from omni_pipeline.worker.recorder import Recorder
from omni_pipeline.worker.routing import Routing

HEARTBEAT_SECONDS = 1.0

# Maximum time, in seconds, from an abort to the next heartbeat. The counters in this heartbeat show the freed
# resources. If a stage still has data of an aborted request, the loop checks this stage again after at most this time.
SHOW_SECONDS = 0.1

# Maximum number of messages to handle between two steps, so that very many messages cannot stop the stages.
DRAIN_MESSAGES = 256

# While an `UrgentStage` is urgent, the loop skips a `PatientStage`, but at most for this number of rounds in a row.
MOST_PASSES = 1

# Number of ended requests whose ids are kept, so that late messages for these requests are recognised. The number is
# far larger than the number of requests in progress.
TOMBSTONES = 16_384

# The messages that a worker on another host may send. All other messages come from the main process only.
_FROM_WORKERS = (Start, Chunk, End, Advice, Abort)

logger = logging.getLogger(__name__)


class WorkerLoop:
    """Runs the stages of one process.

    Args:
        name, incarnation: The worker's name, and the number of its earlier processes, for heartbeats.
        stages: The stages by name, in graph order.
        routing: Finds the processes of the other stages.
        inbox, outbox: The process's sockets; the caller closes them.
        codec: Encodes and decodes messages for the edges of the graph.
        epoch: The last `wire.messages.Moved.epoch` that is already included in `routing`.
        parent: Process id of the parent. The worker ends when the parent ends.
        traced: Whether to record notes for traces of requests.
        network: The link to other hosts; None if the service runs on one host.
    """

    def __init__(
        self,
        name: str,
        stages: Mapping[str, Stage],
        routing: Routing,
        *,
        inbox: Inbox,
        outbox: Outbox,
        codec: Codec,
        parent: int,
        incarnation: int = 0,
        epoch: int = 0,
        traced: bool = False,
        network: Network | None = None,
    ) -> None:
        self._network = network
        self._home_lost = False  # whether messages to the main process may have been lost
        self._name = name
        self._incarnation = incarnation
        self._epoch = epoch
        self._stages = stages
        self._wakers = [stage.waits_on for stage in stages.values() if isinstance(stage, WaitsOutside)]
        self._timed = [stage for stage in stages.values() if isinstance(stage, TimedStage)]
        self._urgent: list[Any] = [stage for stage in stages.values() if isinstance(stage, UrgentStage)]
        self._patient = {name: stage for name, stage in stages.items() if isinstance(stage, PatientStage)}
        # for each patient stage, the number of rounds in a row in which it was skipped
        self._passes = dict.fromkeys(self._patient, 0)
        self._routing = routing
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
            if source in stages and target not in stages and target in routing and target != COLLECTOR
        ]
        self._unanswered: list[Abort] = []  # aborts for which `Forgotten` has not been sent yet
        self._stats = {stage: StageStats() for stage in stages}
        self._edges = Edges(routing.replica)
        self._recorder = Recorder(name, stages, every=traced)
        self._next_beat = time.monotonic()
        self._stopping = False

    def run(self) -> None:
        """Serve until a `Shutdown` arrives or the parent has ended.

        Raises:
            StageBroken: a stage cannot continue. All requests of the stage have already ended with an error.
        """
        while not self._stopping:
            self._take_in()
            for name, stage in self._stages.items():
                if stage.has_work and not self._pass_over(name):
                    self._step(name, stage)
                self._hand_over()
            if self._unanswered:
                self._answer_aborts()
            if self._recorder.many:
                self._tell_notes()
            if time.monotonic() >= self._next_beat:
                self._beat()

    # --- in ---

    def _take_in(self) -> None:
        if not any(stage.has_work for stage in self._stages.values()):
            now = time.monotonic()
            until = min(self._next_beat, *(at for stage in self._timed if (at := stage.wakes_at) is not None), math.inf)
            seconds = max(until - now, 0.0)
            self._inbox.wait(
                min(seconds, SHOW_SECONDS) if self._unanswered else seconds, [*self._wakers, *self._outbox.monitors]
            )
        if self._network is not None:
            for address in self._outbox.lost():
                self._lose_connection(address)
        for received in self._inbox.drain(DRAIN_MESSAGES):
            try:
                message = self._codec.decode(received.frames)
            except WireError as error:
                logger.error("unreadable message: %s", error, extra=fields(answer_id=error.request_id))
                if error.request_id is not None:
                    self._fail(error.request_id, internal("A message between stages could not be read.").info, "")
                continue
            self._handle(message, received)

    def _lose_connection(self, address: str) -> None:
        """Report that the connection to a process on another host has ended. Messages to this process may not have
        arrived. So the main process ends the requests that use both this worker and the process on the other host.
        """
        logger.error("the connection to %s has ended", address.partition(" ")[0])
        if address == self._routing.home:
            # The report goes over a new connection, which may fail too. So the report is sent with a heartbeat.
            self._home_lost = True
            self._next_beat = min(self._next_beat, time.monotonic() + SHOW_SECONDS)
            return
        stages, replica = self._routing.owner(address)
        self._tell(ConnectionLost(self._name, self._incarnation, stages, replica))

    def _handle(self, message: Message, received: Received) -> None:
        if received.host not in ("", MAIN) and not isinstance(message, _FROM_WORKERS):
            kind = type(message).__name__
            logger.error(
                "host %s sent a message of the type %s, which only the main process may send", received.host, kind
            )
            return
        match message:
            case Start() | Chunk() | End() if message.target in self._stages:
                self._deliver(message, received.sent, received.size)
            case Abort():
                self._take_abort(message)
            case Granted() if isinstance(stage := self._stages.get(message.target), ClaimingStage):
                stage.grant(message.request_id)
            case Advice() if message.target in self._stages:
                self._advise(self._timed_advice(message, -1))
            case Moved():
                self._redirect(message)
            case KnownHosts() if self._network is not None:
                self._network.allow(message.keys)
            case ClockOffset() if self._network is not None:
                self._network.offset = message.seconds
            case Shutdown():
                self._report()
                self._stopping = True
            case _:
                # the log must not contain the content of a message
                logger.error("received a message for another process: %s", type(message).__name__)

    def _advise(self, advice: Advice[Any]) -> None:
        stage = self._stages[advice.target]
        assert isinstance(stage, AdvisedStage)
        stage.advise(advice)

    def _take_abort(self, abort: Abort) -> None:
        """Forget a request. If the abort comes from the main process, pass the abort on, after all earlier messages of
        the request.
        """
        if abort.request_id not in self._ended:
            self._forget(abort.request_id)
        if not abort.sender:
            passed = [self._codec.encode(Abort(abort.request_id, self._name, abort.bound))]
            for address in self._routing.receivers(self._downstream, abort):
                self._outbox.send(address, *passed)
        self._unanswered.append(abort)
        self._next_beat = min(self._next_beat, time.monotonic() + SHOW_SECONDS)

    def _answer_aborts(self) -> None:
        """Answer the aborts of requests for which no stage stores data any more.

        An engine frees the data of an aborted request in its next step, so call this method after a step.
        """
        held = {request_id for stage in self._stages.values() for request_id in stage.live()}
        free = [abort for abort in self._unanswered if abort.request_id not in held]
        self._unanswered = [abort for abort in self._unanswered if abort.request_id in held]
        answers = [Forgotten(abort.request_id, self._name, abort.sender) for abort in free]
        if answers:
            self._outbox.send(self._routing.home, *map(self._codec.encode, answers))

    def _redirect(self, moved: Moved) -> None:
        """Store the new address of a process. If the process replaces an earlier process, disconnect from the earlier
        process. If a request has an incomplete stream from or to the earlier process, end the request with an error.
        """
        replaced = self._routing.move(moved.stages, moved.replica, moved.address)
        error = worker_lost(moved.worker).info
        for ledger in (self._received, self._sent) if replaced else ():
            for request_id in ledger.open_with(moved.stages):
                if self._routing.uses(request_id, moved.stages[0], moved.replica):
                    self._fail(request_id, error, moved.stages[0])
        for address in replaced:
            self._outbox.forget(address)
        self._epoch = moved.epoch
        self._next_beat = time.monotonic()  # send a heartbeat now, because the main process waits for this epoch

    def _hand_over(self) -> None:
        while self._local:
            message, given = self._local.popleft()
            self._deliver(message, given, 0)

    def _deliver(self, message: Work, sent: float, size: int) -> None:
        """Pass a message to its stage. The message has `size` bytes and was sent at the time `sent`."""
        name, request_id = message.target, message.request_id
        stage, stats = self._stages[name], self._stats[name]
        if request_id in self._ended:
            stats.dropped_late += 1
            return
        taken = time.monotonic()
        self._routing.learn(message)
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
            logger.exception("stage %s could not handle a message", name, extra=fields(answer_id=request_id))
            self._fail(request_id, _bug(name), name)
        done = time.monotonic()
        stats.busy_seconds += done - taken
        self._recorder.took(message, sent, taken, done)

    # --- work ---

    def _pass_over(self, name: str) -> bool:
        """Whether the loop skips a stage with work in this round, because another stage is urgent."""
        stage = self._patient.get(name)
        if stage is None:
            return False
        waits = (
            self._passes[name] < MOST_PASSES
            and any(other.has_work and other.urgent for other in self._urgent)
            and stage.patient
        )
        self._passes[name] = self._passes[name] + 1 if waits else 0
        return waits

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
            logger.exception("stage %s failed in a step", name)
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
        if told or stage.batch:
            self._recorder.stepped(name, told.union(stage.batch), begin, end)
        # Errors are handled only now, because `abort` must not be called during a step.
        for request_id, info in failed.items():
            self._fail(request_id, info, name)
        if broken is not None:
            raise broken

    # --- out ---

    def _send_advice(self, advice: Advice[Any]) -> None:
        advice.replica = self._routing.replica
        if advice.target in self._stages:
            self._advise(advice)
            return
        timed = self._timed_advice(advice, 1)
        for address in self._routing.all_addresses(advice.target):
            self._post_later(address, timed)

    def _timed_advice(self, advice: Advice[Any], sign: int) -> Advice[Any]:
        """Returns `advice`, with its times converted to another clock. If there are other hosts, the times in advice
        between processes are times of the main host's clock.

        Args:
            sign: 1 to convert from this host's clock to the main host's clock; -1 for the other direction.
        """
        if self._network is None or not isinstance(advice.body, TimedAdvice):
            return advice
        return structs.replace(advice, body=advice.body.shifted(sign * self._network.offset))

    def _route(self, name: str, message: Work | Failed | Claim | Paused, failed: Container[str]) -> ErrorInfo | None:
        """Send a message from a stage. If the request must end with an error, returns this error."""
        if message.request_id in failed or message.request_id in self._ended:
            return None
        if isinstance(message, Failed):
            return message.error
        if isinstance(message, Claim | Paused):
            self._tell(message)
            return None
        try:
            self._sent.stamp(message)
            if message.target in self._stages:
                self._local.append((message, time.monotonic()))
            else:
                if is_first(message):
                    message.bound = self._routing.bound(message.request_id)
                self._post_later(self._routing.address(message.target, message.request_id), message)
        except Exception:  # a bug in the stage: a body that cannot be encoded, or an unknown target
            logger.exception(
                "stage %s returned a message that cannot be sent", name, extra=fields(answer_id=message.request_id)
            )
            return _bug(name)
        self._stats[name].sent += 1
        return None

    def _post_later(self, address: str, message: Work | Advice[Any]) -> None:
        self._parcels.setdefault(address, []).append(self._codec.encode(message))

    def _post(self) -> None:
        """Send the step's messages for other processes."""
        for address, messages in self._parcels.items():
            self._outbox.send(address, *messages)
        self._parcels.clear()

    def _fail(self, request_id: str, error: ErrorInfo, stage: str) -> None:
        """Report an error to the main process, and forget the request in this worker. The main process ends the request
        in all other workers.
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
        self._routing.forget(request_id)

    def _beat(self) -> None:
        self._next_beat = time.monotonic() + HEARTBEAT_SECONDS
        if os.getppid() != self._parent:
            logger.error("the parent process has ended")
            self._stopping = True
            return
        self._report()

    def _report(self) -> None:
        if len(self._routing):
            held = {request_id for stage in self._stages.values() for request_id in stage.live()}
            self._routing.keep(held.union(self._received.requests, self._sent.requests))
        for name, stage in self._stages.items():
            stats = self._stats[name]
            stats.live_requests = len(stage.live())
            stats.extra = stage.stats()
        self._tell_notes()
        if self._home_lost:
            self._home_lost = False
            self._tell(ConnectionLost(self._name, self._incarnation, []))
        self._tell(Heartbeat(self._name, self._incarnation, self._stats, self._edges.all(), self._epoch))

    def _tell_notes(self) -> None:
        live = {name: stage.live() for name, stage in self._stages.items()}
        self._tell(self._recorder.take(time.monotonic(), live))

    def _tell(self, message: Failed | Claim | Paused | Heartbeat | Notes | ConnectionLost) -> None:
        self._outbox.send(self._routing.home, self._codec.encode(message))


def _bug(stage: str) -> ErrorInfo:
    return internal(f"The {stage} stage failed unexpectedly.").info
