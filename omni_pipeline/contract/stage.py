"""The one contract between the framework and a stage.

A stage is a plain object in a single-threaded loop (see `worker`). `receive` queues work and returns at once; `step`
does one batch of work over every request that is ready and gives the messages to send. Nothing here blocks, locks or
starts threads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol

from msgspec import Struct

from omni_pipeline.wire.messages import Failed, Work


class Ranks(Struct, frozen=True):
    """A process's place among those that share a stage's work.

    Attributes:
        rank: Its number; 0 is the stage's worker.
        size: How many they are.
        port: TCP port of this host where they find each other; 0 for a single one.
    """

    rank: int = 0
    size: int = 1
    port: int = 0


class StageContext(Struct, frozen=True):
    """What a stage is told when it is built, in its worker process.

    Attributes:
        name: The stage's name in the graph.
        model_path: Directory of the checkpoint.
        device: ``cpu`` or ``cuda``; the worker already sees only its own GPUs.
        options: An instance of the stage's options struct.
        stages: Names of all stages that this deployment runs.
        scratch: Private directory (mode 0700) of this process for short-lived files; it is removed with the process.
        ranks: Who shares its work. In a stage of several ranks, what it does must follow from its messages, aborts and
            steps alone, see `ranks`.
        static: Bytes of each GPU for weights and KV cache; None leaves it to the stage.
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
    """Raised by a stage that can serve nobody any more: its requests fail and its worker process ends."""


class Stage(Protocol):
    """One stage of the graph; see the module text for how it is driven."""

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do now. False while everything waits for messages."""

    @property
    def batch(self) -> Collection[str]:
        """Ids of the requests that the latest `step` computed for, not of those that it only sent something."""

    def receive(self, message: Work) -> None:
        """Take over a message. May raise `errors.OmniError` to end that request with an error."""

    def step(self) -> Iterable[Work | Failed]:
        """Do one batch of work and give what is to be sent.

        An `errors.OmniError` that concerns one request is given as `wire.Failed`. An exception means a bug: the worker
        then fails every request that the stage holds, and goes on unless the exception is a `StageBroken`. `abort` is
        never called while this runs.
        """

    def abort(self, request_id: str) -> None:
        """Forget a request and free what it holds. Unknown ids are none of its business: do nothing."""

    def live(self) -> Collection[str]:
        """Ids of the requests it holds something for."""

    def stats(self) -> dict[str, float]:
        """Its own figures for `wire.StageStats.extra`; `gateway.metrics` says what each name means.

        ``queued_requests`` is how many could be worked on and are not in work.
        """

    def close(self) -> None:
        """Free what outlives the process's memory (files, sockets)."""
