"""Defines the messages that pass between processes.

Every message is one of the structs below. Messages that carry work (`Start`, `Chunk`, `End`) name their edge of
the stage graph and hold a *body*: a struct whose type belongs to that edge (see `contract.graph.Edge`).
"""

from __future__ import annotations

from typing import Any, Generic, TypeAlias, TypeVar

from msgspec import Struct, field

from omni_pipeline.errors import ErrorInfo
from omni_pipeline.wire.counters import BATCH_SIZES, STEP_SECONDS, Distribution, EdgeStats
from omni_pipeline.wire.trace_notes import Notes

Body = TypeVar("Body")


class Start(Struct, Generic[Body], tag="start"):
    """The first message of a request on one edge. If the edge does not carry a stream, the only message."""

    request_id: str
    source: str
    target: str
    body: Body


class Chunk(Struct, Generic[Body], tag="chunk"):
    """The next piece of a stream. The sending worker fills in `seq`, which counts from 0 on each edge."""

    request_id: str
    source: str
    target: str
    body: Body
    seq: int = -1


class End(Struct, Generic[Body], tag="end"):
    """The last message of a stream; `count` is the number of chunks before it, which the sending worker fills in."""

    request_id: str
    source: str
    target: str
    body: Body = None  # type: ignore[assignment]
    count: int = -1


class Advice(Struct, Generic[Body], tag="advice"):
    """Information from one stage that helps another stage to choose the order of its work. It belongs to no stream and
    is not numbered. No answer may depend on it, because it may come late, or for a request that has ended.
    """

    source: str
    target: str
    body: Body


class Abort(Struct, tag="abort"):
    """Orders a worker to free all data of a request that is no longer wanted. The worker must not send messages of the
    request any more.

    The main process sends the abort to every ready worker that runs a stage of the request. Each of these workers
    passes the abort on to the workers to which its stages may send messages. Messages between two processes arrive in
    order, so no message of the request follows the abort on any connection.

    Attributes:
        sender: Name of the worker that passes the abort on; empty in the main process's own message.
    """

    request_id: str
    sender: str = ""


class Forgotten(Struct, tag="forgotten"):
    """A worker's answer to one `Abort`: the worker holds no data of the request, and all earlier messages of `sender`
    about the request have been dropped.

    Attributes:
        sender: As in the `Abort`.
    """

    request_id: str
    worker: str
    sender: str


class Claim(Struct, tag="claim"):
    """A stage asks for memory before it allocates large data for a request. The stage waits for `Granted`.

    Attributes:
        source: Name of the stage.
        passing: Bytes that no stage holds any more when the answer begins.
        lasting: Bytes that some stage may hold until the request ends.
    """

    request_id: str
    source: str
    passing: int
    lasting: int


class Granted(Struct, tag="granted"):
    """The main process's answer to a `Claim`, for the stage `target` that sent the claim."""

    request_id: str
    target: str


class Failed(Struct, tag="failed"):
    """Reports that a stage cannot continue with a request. Sent to the collector, which answers the client with the
    error and aborts the request in all other workers.
    """

    request_id: str
    source: str
    error: ErrorInfo


class Ready(Struct, tag="ready"):
    """Reports that the worker's process number `incarnation` has loaded its stages and reads its inbox.

    `ranks` are the ids of its child processes that share its work, see `worker.tensor_parallel`.
    """

    worker: str
    incarnation: int
    pid: int
    stages: list[str]
    seconds: float
    ranks: list[int] = []


class StageStats(Struct):
    """Counters of one stage since it started. Counters only grow, except `live_requests`, which is the current number.

    Attributes:
        live_requests: Number of requests for which the stage holds data.
        received, sent: Number of messages.
        steps: Number of batches that the stage has computed.
        busy_seconds: Time that the stage has spent on messages and batches.
        dropped_late: Number of messages that came after their request had ended.
        step_seconds: Histogram of the time of each step.
        batch_sizes: Histogram of the number of requests in each batch.
        extra: The stage's own metrics by name, such as cache hits or tokens in the KV cache.
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


class Heartbeat(Struct, tag="heartbeat"):
    """Sent about every second by a worker that is alive, with its counters and the last `Moved.epoch` that it
    received.
    """

    worker: str
    incarnation: int
    stats: dict[str, StageStats]
    edges: list[EdgeStats] = []
    epoch: int = 0


class Pulse(Struct, tag="pulse"):
    """Sent about every second by a worker on a GPU while its main thread makes progress, even within a step.

    See `worker.pulse`.
    """

    worker: str
    incarnation: int


class StartFailed(Struct, tag="start_failed"):
    """Reports that a worker could not load. `message` gives the reason, and how to solve the problem."""

    worker: str
    incarnation: int
    message: str


class Step(Struct, tag="step"):
    """Orders the other ranks of a stage to take a step. Rank 0 sends it; see `worker.tensor_parallel`."""


class Moved(Struct, tag="moved"):
    """Announces that the process that ran `stages` has ended. The next process will receive messages for these stages
    at `address`.

    A worker that receives this message fails the requests that have an open stream to or from `stages`, and reports
    `epoch` in its next heartbeat. When all workers have reported `epoch`, no worker sends to the old address any more.
    `epoch` numbers the `Moved` messages.
    """

    worker: str
    stages: list[str]
    address: str
    epoch: int


class Shutdown(Struct, tag="shutdown"):
    """Orders a worker to leave its loop and exit."""


Work: TypeAlias = Start[Any] | Chunk[Any] | End[Any]
Control: TypeAlias = Ready | Heartbeat | Pulse | Notes | StartFailed | Moved | Step | Shutdown
Message: TypeAlias = Work | Advice[Any] | Abort | Forgotten | Claim | Granted | Failed | Control
