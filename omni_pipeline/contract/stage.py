"""Defines the interface between the framework and a stage.

A stage is an object whose methods are called by a single-threaded loop (see `worker.loop`). `receive` queues work and
returns at once. `step` computes one batch for all requests that are ready, and returns the messages to send. A stage
does not block, use locks or start threads. A stage that has its own processes is also a `WaitsOutside`. While no stage
has work, the loop sleeps until a message arrives, or until one of these processes answers. The loop also wakes up for
heartbeats, and at the times that a `TimedStage` requests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol, runtime_checkable

from msgspec import Struct

from omni_pipeline.wire.messages import Advice, Claim, Failed, Paused, Work


class Ranks(Struct, frozen=True):
    """The position of a process among the processes that share a stage's work.

    Attributes:
        rank: Number of the process. Process 0 is the stage's worker.
        size: Number of processes that share the stage's work.
        port: TCP port of this host through which the processes find each other; 0 if there is only one process.
    """

    rank: int = 0
    size: int = 1
    port: int = 0


class StageContext(Struct, frozen=True):
    """The input of a stage when its worker process builds the stage.

    Attributes:
        name: The stage's name in the graph.
        model_path: Directory of the checkpoint.
        device: ``cpu`` or ``cuda``; the worker already sees only its own GPUs.
        options: An instance of the stage's options struct.
        stages: Names of all stages that this deployment runs.
        scratch: Private directory (mode 0700) of this process for short-lived files; it is removed when the process
            ends.
        ranks: The position of this process among the processes that share the stage's work. The behaviour of a stage
            with several ranks must depend only on its messages, aborts and steps (see `worker.tensor_parallel`).
        static: Number of bytes on each GPU for weights and KV cache; None if the stage chooses the number.
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
        """Ids of the requests in the batch of the latest `step`. Requests for which the step sent messages but computed
        nothing are not included.
        """

    def receive(self, message: Work) -> None:
        """Accept a message. May raise `errors.OmniError` to end the message's request with an error."""

    def step(self) -> Iterable[Work | Failed | Claim | Paused | Advice[Any]]:
        """Compute one batch and return the messages to send.

        An error of one request is returned as `wire.messages.Failed`, not raised. An exception means a bug: the worker
        then fails all requests for which the stage stores data. If the exception is a `StageBroken`, the worker also
        ends. `abort` is never called during a step.
        """

    def abort(self, request_id: str) -> None:
        """Forget a request and free all its resources in the stage. Ignore unknown ids."""

    def live(self) -> Collection[str]:
        """Ids of the requests for which the stage stores data."""

    def stats(self) -> dict[str, float]:
        """The stage's own metrics for `wire.messages.StageStats.extra`; `gateway.metrics` explains each name.

        ``queued_requests`` is the number of requests that the stage could start, but has not started yet. If
        `StageSpec.prefix_cache` is set, it is the name of one of the metrics: the size of the stage's prefix cache in
        tokens.
        """

    def close(self) -> None:
        """Free resources that the end of the process would not free, such as files and sockets."""


@runtime_checkable
class WaitsOutside(Protocol):
    """A stage that has its own processes. When one of these processes answers, the worker's loop must wake up."""

    @property
    def waits_on(self) -> int:
        """A file descriptor that becomes readable as soon as another process has made `has_work` true.

        The descriptor must not stay readable after a `step` without work, because the loop would then never sleep. Even
        if the descriptor never becomes readable, the loop reads `has_work` at least once per heartbeat. So `has_work`
        may also become true only because time has passed.
        """


@runtime_checkable
class ClaimingStage(Protocol):
    """A stage that asks for permission before it continues with a request. The reason is that the stage needs memory,
    or that the client may not have read enough of the answer yet.

    The stage's `step` returns a `wire.messages.Claim` or a `wire.messages.Paused`. Until `grant` is called for the
    request, the stage allocates nothing and makes no output for this request, and continues with other requests. A
    stage with several ranks cannot ask for permission.
    """

    def grant(self, request_id: str) -> None:
        """Continue with a request. Ignore unknown ids. The loop never calls this method during a step."""


@runtime_checkable
class AdvisedStage(Protocol):
    """A stage to which another stage sends `wire.messages.Advice`."""

    def advise(self, advice: Advice[Any]) -> None:
        """Use advice from another stage. The method must ignore unknown requests, and must not raise an exception. The
        loop never calls this method during a step of this stage.
        """


@runtime_checkable
class TimedAdvice(Protocol):
    """The body of `wire.messages.Advice` that contains times of `time.monotonic`. Each host has its own clock, so the
    loop converts these times when the advice goes to another host.
    """

    def shifted(self, seconds: float) -> Any:
        """The same body with `seconds` added to every time."""


@runtime_checkable
class TimedStage(Protocol):
    """A stage that can get work at a certain time, even if no message arrives."""

    @property
    def wakes_at(self) -> float | None:
        """The time (`time.monotonic`) at which `has_work` can become true without a message; None if there is no such
        time.
        """


@runtime_checkable
class UrgentStage(Protocol):
    """A stage whose step is sometimes needed earlier than the steps of a `PatientStage` in the same worker."""

    @property
    def urgent(self) -> bool:
        """Whether a client will notice if the next step is late. The loop reads this property only while `has_work` is
        true.
        """


@runtime_checkable
class PatientStage(Protocol):
    """A stage whose steps are not urgent. While another stage is urgent, the worker's loop may skip this stage for some
    rounds.
    """

    @property
    def patient(self) -> bool:
        """Whether the next step may wait. The loop reads this property only while `has_work` is true."""
