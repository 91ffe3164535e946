"""Defines the messages that pass between processes.

Every message is one of the structs below. Messages with work (`Start`, `Chunk`, `End`) name their edge of the stage
graph and contain a *body*. The body is a struct whose type belongs to that edge (see `contract.graph.Edge`).
"""

from __future__ import annotations

from typing import Any, Generic, TypeAlias, TypeVar

from msgspec import UNSET, Struct, UnsetType, field

from omni_pipeline.errors import ErrorInfo
from omni_pipeline.wire.counters import BATCH_SIZES, STEP_SECONDS, Distribution, EdgeStats
from omni_pipeline.wire.host_messages import HostMessage
from omni_pipeline.wire.trace_notes import Notes

Body = TypeVar("Body")

# Number of the replica that a request uses in each replicated group of stages, keyed by the group's name. Unset if the
# request uses no replicated group.
Binding: TypeAlias = dict[str, int] | UnsetType


class Start(Struct, Generic[Body], tag="start"):
    """The first message of a request on one edge. If the request has no stream on this edge, this is the only message.

    Attributes:
        bound: The replicas that the request uses. The main process chooses the replicas when it sends the request.
            Every worker sets `bound` in its first message of the request on each edge. So every worker has received
            `bound` before it sends messages of the request.
    """

    request_id: str
    source: str
    target: str
    body: Body
    bound: Binding = UNSET


class Chunk(Struct, Generic[Body], tag="chunk"):
    """The next piece of a stream. The sending worker sets `seq`, which counts from 0 on each edge. In the first piece,
    the worker also sets `bound`, as in `Start`.
    """

    request_id: str
    source: str
    target: str
    body: Body
    seq: int = -1
    bound: Binding = UNSET


class End(Struct, Generic[Body], tag="end"):
    """The last message of a stream. The sending worker sets `count`, the number of chunks before this message. If there
    was no chunk, the worker also sets `bound`, as in `Start`.
    """

    request_id: str
    source: str
    target: str
    body: Body = None  # type: ignore[assignment]
    count: int = -1
    bound: Binding = UNSET


class Advice(Struct, Generic[Body], tag="advice"):
    """Information from one stage that helps another stage to choose the order of its work. Advice is not part of a
    stream and has no number. The content of answers must not depend on advice, because advice may arrive late, or after
    the end of its request. If the target has replicas, all replicas get the advice.

    Attributes:
        replica: Number of the replica of `source`. The sending worker sets this number.
    """

    source: str
    target: str
    body: Body
    replica: int = 0


class Abort(Struct, tag="abort"):
    """Orders a worker to free all data of a request that has been aborted. The worker must not send messages of the
    request any more.

    The main process sends the abort to every ready worker that runs a stage of the request. Each of these workers
    passes the abort on to the workers to which its stages may send messages. Messages between two processes arrive in
    order. So on each connection, the abort is the last message of the request.

    Attributes:
        sender: Name of the worker that passes the abort on; empty if the main process has sent the message.
        bound: The replicas that the request uses. The abort must contain these replicas, because the abort may reach a
            worker before the request does.
    """

    request_id: str
    sender: str = ""
    bound: Binding = UNSET


class Forgotten(Struct, tag="forgotten"):
    """A worker's answer to one `Abort`. The worker has no data of the request any more, and has dropped all earlier
    messages of `sender` about the request.

    Attributes:
        sender: The `sender` of the `Abort`.
    """

    request_id: str
    worker: str
    sender: str


class Claim(Struct, tag="claim"):
    """A stage's claim for memory. The stage sends the claim before it allocates large data for a request, and then
    waits for `Granted`.

    Attributes:
        source: Name of the stage.
        passing: Bytes that are in use until the answer begins. By then, all stages have freed them.
        lasting: Bytes that a stage may use until the request ends.
    """

    request_id: str
    source: str
    passing: int
    lasting: int


class Paused(Struct, tag="paused"):
    """Reports that the stage `source` has made a part of an answer, and waits for `Granted` before it makes the next
    part. So if a client reads slowly, the unread part of its answer in the main process stays small.
    """

    request_id: str
    source: str


class Granted(Struct, tag="granted"):
    """The main process's answer to a `Claim` or a `Paused`. The stage `target` has sent the `Claim` or the `Paused`."""

    request_id: str
    target: str


class Failed(Struct, tag="failed"):
    """Reports that a stage cannot continue with a request. The message is sent to the collector. The collector answers
    the client with the error, and aborts the request in all other workers.
    """

    request_id: str
    source: str
    error: ErrorInfo


class Ready(Struct, tag="ready"):
    """Reports that the worker's process number `incarnation` has loaded its stages and reads its inbox.

    `ranks` are the ids of the child processes that share the worker's work (see `worker.tensor_parallel`).
    `remote_address` is the endpoint at which processes on other hosts reach the worker's inbox; empty if the service
    runs on one host.
    """

    worker: str
    incarnation: int
    pid: int
    stages: list[str]
    seconds: float
    ranks: list[int] = []
    remote_address: str = ""


class StageStats(Struct):
    """Counters of one stage since it started. Counters only grow. `live_requests` and some of the values in `extra` are
    not counters, but current numbers.

    Attributes:
        live_requests: Number of requests for which the stage stores data.
        received, sent: Number of messages that the stage has received, and number of messages that it has sent.
        steps: Number of batches that the stage has computed.
        busy_seconds: Time that the stage has spent on messages and batches.
        dropped_late: Number of messages that arrived after their request had ended.
        step_seconds: Histogram of the time of each step.
        batch_sizes: Histogram of the number of requests in each batch.
        extra: The stage's own metrics by name, such as cache hits or tokens in the KV cache. Each metric must be a
            value that can be added up over the replicas of a stage.
    """

    live_requests: int = 0
    received: int = 0
    sent: int = 0
    steps: int = 0
    busy_seconds: float = 0.0
    dropped_late: int = 0
    step_seconds: Distribution = field(default_factory=lambda: Distribution.over(STEP_SECONDS))
    batch_sizes: Distribution = field(default_factory=lambda: Distribution.over(BATCH_SIZES))
    extra: dict[str, float] = {}

    def plus(self, other: StageStats) -> StageStats:
        """The sum of the counters of two replicas of a stage."""
        return StageStats(
            live_requests=self.live_requests + other.live_requests,
            received=self.received + other.received,
            sent=self.sent + other.sent,
            steps=self.steps + other.steps,
            busy_seconds=self.busy_seconds + other.busy_seconds,
            dropped_late=self.dropped_late + other.dropped_late,
            step_seconds=self.step_seconds.plus(other.step_seconds),
            batch_sizes=self.batch_sizes.plus(other.batch_sizes),
            extra={
                name: self.extra.get(name, 0.0) + other.extra.get(name, 0.0)
                for name in dict.fromkeys((*self.extra, *other.extra))
            },
        )


class Heartbeat(Struct, tag="heartbeat"):
    """Every running worker sends this message about once a second. The message contains the worker's counters and the
    last `Moved.epoch` that the worker received.
    """

    worker: str
    incarnation: int
    stats: dict[str, StageStats]
    edges: list[EdgeStats] = []
    epoch: int = 0


class Pulse(Struct, tag="pulse"):
    """A worker on a GPU sends this message about once a second, even during a step, as long as its main thread makes
    progress.

    See `worker.pulse`.
    """

    worker: str
    incarnation: int


class StartFailed(Struct, tag="start_failed"):
    """Reports that a worker could not load. `message` contains the reason, and how to solve the problem."""

    worker: str
    incarnation: int
    message: str


class Step(Struct, tag="step"):
    """Orders the other ranks of a stage to compute a step. Rank 0 sends this message (see `worker.tensor_parallel`)."""


class Moved(Struct, tag="moved"):
    """Announces that the process that ran `stages` has ended, or that a replica is added. The new process receives
    messages for these stages at `address`. An empty address means that there is no new process.

    `epoch` numbers the `Moved` messages. A worker that receives this message ends certain requests with an error. These
    requests use this `replica` and have an open stream to or from `stages`. The worker reports `epoch` in its next
    heartbeat. When all workers have reported `epoch`, no worker sends to the old address any more.
    """

    worker: str
    stages: list[str]
    address: str
    epoch: int
    replica: int = 0


class Shutdown(Struct, tag="shutdown"):
    """Orders a worker to leave its loop and exit."""


Work: TypeAlias = Start[Any] | Chunk[Any] | End[Any]
Control: TypeAlias = Ready | Heartbeat | Pulse | Notes | StartFailed | Moved | Step | Shutdown | HostMessage
Message: TypeAlias = Work | Advice[Any] | Abort | Forgotten | Claim | Paused | Granted | Failed | Control
