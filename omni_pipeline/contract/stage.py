"""Defines the interface between the framework and a stage.

A stage is an object whose methods are called by a single-threaded loop (see `worker.loop`). `receive` queues work and
returns at once. `step` computes one batch for all requests that are ready, and returns the messages to send. A stage
does not block, use locks or start threads. A stage that has its own processes is also a `WaitsOutside`: the loop then
sleeps until a message arrives or one of these processes answers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol, runtime_checkable

from msgspec import Struct

from omni_pipeline.wire.messages import Advice, Claim, Failed, Work


class Ranks(Struct, frozen=True):
    """The position of a process among the processes that share a stage's work.

    Attributes:
        rank: Number of the process; 0 is the stage's worker.
        size: Number of processes that share the stage's work.
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
        ranks: The position of this process among the processes that share the stage's work. A stage of several ranks
            must depend only on its messages, aborts and steps, see `worker.tensor_parallel`.
        static: Number of bytes on each GPU for weights and KV cache; None if the stage decides the number.
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
    """Raised by a stage that cannot serve requests any more. All its requests fail, and its worker process ends."""


class Stage(Protocol):
    """One stage of the graph. The module's docstring explains when its methods are called."""

    @property
    def has_work(self) -> bool:
        """Whether `step` has work to do now. False while all requests of the stage wait for messages."""

    @property
    def batch(self) -> Collection[str]:
        """Ids of the requests in the latest `step`'s batch, without requests for which the step only sent messages."""

    def receive(self, message: Work) -> None:
        """Accept a message. May raise `errors.OmniError` to end the message's request with an error."""

    def step(self) -> Iterable[Work | Failed | Claim | Advice[Any]]:
        """Compute one batch and return the messages to send.

        An error of one request is returned as `wire.messages.Failed`, not raised. An exception means a bug: the worker
        then fails every request that the stage holds. If the exception is a `StageBroken`, the worker also ends.
        `abort` is never called during a step.
        """

    def abort(self, request_id: str) -> None:
        """Forget a request and free all its resources in the stage. Ignore unknown ids."""

    def live(self) -> Collection[str]:
        """Ids of the requests for which the stage holds data."""

    def stats(self) -> dict[str, float]:
        """The stage's own metrics for `wire.messages.StageStats.extra`; `gateway.metrics` explains each name.

        ``queued_requests`` is the number of requests that are ready to be worked on but that the stage has not started.
        """

    def close(self) -> None:
        """Free resources that the end of the process would not free, such as files and sockets."""


@runtime_checkable
class WaitsOutside(Protocol):
    """A stage that leaves work to other processes and must be woken when they answer."""

    @property
    def waits_on(self) -> int:
        """A file descriptor that becomes readable as soon as another process has made `has_work` true.

        The descriptor must not stay readable after a `step` that had nothing to do, because the loop would then never
        sleep. The loop reads `has_work` at least at each heartbeat, so `has_work` may also become true because time has
        passed.
        """


@runtime_checkable
class ClaimingStage(Protocol):
    """A stage that asks for memory before it allocates large data.

    The stage's `step` returns a `wire.messages.Claim`. Until `grant` is called for the request, the stage allocates
    nothing for the request, and continues with other requests. A stage of several ranks cannot claim.
    """

    def grant(self, request_id: str) -> None:
        """Continue with a request whose claim has been granted. Ignore unknown ids. Never called during a step."""


@runtime_checkable
class AdvisedStage(Protocol):
    """A stage to which another stage sends `wire.messages.Advice`."""

    def advise(self, advice: Advice[Any]) -> None:
        """Use advice from another stage. Must ignore requests that the stage does not know, and not raise an exception.
        Never called during a step of this stage.
        """


@runtime_checkable
class TimedStage(Protocol):
    """A stage that gets work because time passes."""

    @property
    def wakes_at(self) -> float | None:
        """The time, by `time.monotonic`, at which `has_work` may become true without a message; None if it cannot."""
