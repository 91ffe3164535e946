"""The one contract between the framework and a stage.

A stage is a plain object in a single-threaded loop (see `worker.loop`). `receive` queues work and returns at once.
`step` does one batch of work for all requests that are ready, and returns the messages to send. Nothing here blocks,
locks or starts threads. A stage that has processes of its own is also a `WaitsOutside`: the loop then sleeps until a
message arrives or such a process answers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol, runtime_checkable

from msgspec import Struct

from omni_pipeline.wire.messages import Claim, Failed, Work


class Ranks(Struct, frozen=True):
    """A process's place among the processes that share a stage's work.

    Attributes:
        rank: Number of the process; 0 is the stage's worker.
        size: Number of these processes.
        port: TCP port of this host where the processes find each other; 0 if there is only one process.
    """

    rank: int = 0
    size: int = 1
    port: int = 0


class StageContext(Struct, frozen=True):
    """The information that a stage receives when it is built in its worker process.

    Attributes:
        name: The stage's name in the graph.
        model_path: Directory of the checkpoint.
        device: ``cpu`` or ``cuda``; the worker already sees only its own GPUs.
        options: An instance of the stage's options struct.
        stages: Names of all stages that this deployment runs.
        scratch: Private directory (mode 0700) of this process for short-lived files; it is removed with the process.
        ranks: This process's place among the processes that share the stage's work. A stage of several ranks must
            depend only on its messages, aborts and steps, see `worker.tensor_parallel`.
        static: Bytes of each GPU for weights and KV cache; None if the stage decides.
    """

    name: str
    model_path: str
    device: str
    options: Any
    stages: frozenset[str]
    scratch: str
    ranks: Ranks = Ranks()
    static: int | None = None


class StageBroken(Exception):
    """Raised by a stage that can serve no request any more: its requests fail and its worker process ends."""


class Stage(Protocol):
    """One stage of the graph; see the module's docstring for how it is driven."""

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do now. False while everything waits for messages."""

    @property
    def batch(self) -> Collection[str]:
        """Ids of the requests in the latest `step`'s batch, without requests for which the step only sent messages."""

    def receive(self, message: Work) -> None:
        """Accept a message. May raise `errors.OmniError` to end the message's request with an error."""

    def step(self) -> Iterable[Work | Failed | Claim]:
        """Do one batch of work and return the messages to send.

        An error of one request is returned as `wire.messages.Failed`, not raised. An exception means a bug: the worker
        then fails every request that the stage holds, and goes on unless the exception is a `StageBroken`. `abort` is
        never called during a step.
        """

    def abort(self, request_id: str) -> None:
        """Forget a request and free everything that the stage holds for it. Ignore unknown ids."""

    def live(self) -> Collection[str]:
        """Ids of the requests for which the stage holds anything."""

    def stats(self) -> dict[str, float]:
        """The stage's own metrics for `wire.messages.StageStats.extra`; `gateway.metrics` explains each name.

        ``queued_requests`` is the number of requests that are ready but on which the stage does not work yet.
        """

    def close(self) -> None:
        """Free resources that the end of the process would not free, such as files and sockets."""


@runtime_checkable
class WaitsOutside(Protocol):
    """A stage that leaves work to other processes and must be woken when they answer."""

    @property
    def waits_on(self) -> int:
        """A descriptor that is readable as soon as something outside has made `has_work` true.

        It must not stay readable after a `step` that had nothing to do, because the loop would then never sleep. The
        loop reads `has_work` at least with each heartbeat, so a stage may also let `has_work` become true by the clock.
        """


@runtime_checkable
class ClaimingStage(Protocol):
    """A stage that asks before it makes something large.

    The stage's `step` returns a `wire.messages.Claim`. Until `grant` is called for the request, the stage makes nothing
    for it, and goes on with other requests. A stage of several ranks cannot claim.
    """

    def grant(self, request_id: str) -> None:
        """Go on with a request whose claim has been granted. Ignore unknown ids. Never called during a step."""
