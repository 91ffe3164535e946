"""The pipeline in the main process. Sends requests to workers, passes on answers, and decides which requests can be
served now.

`Supervisor` implements `gateway.pipeline.Pipeline`, the interface that the gateway uses, on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain
from typing import Any

from omni_pipeline.contract.graph import COLLECTOR, GATEWAY
from omni_pipeline.errors import ErrorInfo, internal, unavailable, worker_lost
from omni_pipeline.supervision.fleet import Fleet, StartProgress
from omni_pipeline.supervision.forgetting import Forgetting, receivers_of
from omni_pipeline.supervision.mailbox import Mailbox
from omni_pipeline.supervision.plan import PipelinePlan
from omni_pipeline.supervision.worker_state import WorkerReport, WorkerState
from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.counters import Edges, EdgeStats
from omni_pipeline.wire.messages import (
    Abort,
    Chunk,
    Claim,
    End,
    Failed,
    Forgotten,
    Granted,
    StageStats,
    Start,
    Work,
)
from omni_pipeline.wire.trace_notes import Notes, Took
from omni_pipeline.wire.transport import MAIN, Received, make_run_dir


class Supervisor:
    """The workers of one deployment.

    The constructor starts the fork server, which imports modules while the caller prepares the rest of the service.
    Then call `start`. On the same event loop, use the object as a `gateway.pipeline.Pipeline`, and at the end call
    `stop`, even after an error.

    Raises:
        StartupError: the paths of the sockets would be too long.
    """

    def __init__(self, plan: PipelinePlan) -> None:
        self._plan = plan
        self._own_edges = Edges()
        self._deliver: Callable[[Work | Failed], None] = _to_nobody
        self._lost: Callable[[frozenset[str], ErrorInfo], None] = _to_nobody
        self._noted: Callable[[Notes], None] = _to_nobody
        self._claimed: Callable[[Claim, Callable[[], None]], None] = _grant_at_once
        self._run_dir = make_run_dir()
        try:
            codec = Codec(plan.graph.body_types())
            stages = {worker.name: worker.stage_names for worker in plan.workers}
            self._forgetting = Forgetting(receivers_of(stages, codec.edges))
            self._mailbox = Mailbox(self._run_dir, codec, self._fail_unreadable)
            self._fleet = Fleet(plan, self._run_dir, self._mailbox, self._report_loss)
        except BaseException:
            shutil.rmtree(self._run_dir)
            raise
        self._roster = self._fleet.roster
        self._mailbox.register(Start, self._take_work)
        self._mailbox.register(Chunk, self._take_work)
        self._mailbox.register(End, self._take_work)
        self._mailbox.register(Failed, self._take_failure)
        self._mailbox.register(Notes, self._take_notes)
        self._mailbox.register(Forgotten, self._take_forgotten)
        self._mailbox.register(Claim, self._take_claim)

    # --- life ---

    async def start(self, model_path: str, progress: Callable[[StartProgress], None] | None = None) -> None:
        """Start every worker and wait until all are ready.

        Args:
            model_path: Directory of the checkpoint.
            progress: Called when the libraries have been imported, and each time a worker is ready.

        Raises:
            StartupError: a worker could not load. The message names it and gives the reason. Call `stop` to clean up.
        """
        self._mailbox.open()
        await self._fleet.start(model_path, progress or _to_nobody)

    async def stop(self, patience: float = 10.0) -> None:
        """End every process and remove every file, in any state.

        Args:
            patience: Number of seconds in which workers may exit by themselves before they are killed.
        """
        try:
            await self._fleet.stop(patience)
        finally:
            self._fleet.close()
            self._mailbox.close()
            shutil.rmtree(self._run_dir, ignore_errors=True)

    def kill(self) -> None:
        """Kill every worker now. A `stop` that waits for the workers then continues."""
        self._fleet.kill()

    # --- the pipeline ---

    def connect(
        self, deliver: Callable[[Work | Failed], None], lost: Callable[[frozenset[str], ErrorInfo], None]
    ) -> None:
        """Set the receivers of answers and losses; see `gateway.pipeline.Pipeline`."""
        self._deliver = deliver
        self._lost = lost

    def trace(self, noted: Callable[[Notes], None]) -> None:
        """Set the receiver of notes about requests; see `gateway.pipeline.Pipeline`."""
        self._noted = noted

    def budget(self, claimed: Callable[[Claim, Callable[[], None]], None]) -> None:
        """Set the receiver of claims; see `gateway.pipeline.Pipeline`. Without a receiver, each claim is granted at
        once.
        """
        self._claimed = claimed

    async def wait_for(self, stages: Collection[str] | None, seconds: float | None) -> None:
        """Wait until the given stages can work; see `gateway.pipeline.Pipeline`."""
        if seconds is not None:
            self._check_patience(stages, seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.until(lambda: self._fleet.stopping or not self._roster.missing(stages))
        self._check(stages)

    def _check_patience(self, stages: Collection[str] | None, seconds: float) -> None:
        """Refuse a request at once if it would be refused after `seconds` anyway."""
        now = asyncio.get_running_loop().time()
        missing = self._roster.missing(stages)
        expected = [worker.seconds_to_ready(now) for worker in missing]
        if any(each is None or each > seconds for each in expected):
            raise self._roster.refusal(missing, now)

    def _check(self, stages: Collection[str] | None) -> None:
        """Refuse a request if one of `stages` cannot work now."""
        if self._fleet.stopping:
            raise unavailable("The server is shutting down.", code="shutting_down")
        missing = self._roster.missing(stages)
        if missing:
            raise self._roster.refusal(missing, asyncio.get_running_loop().time())

    def submit(self, request_id: str, body: Any, stages: Collection[str] | None = None) -> None:
        """Send a request body to the entry stage; see `gateway.pipeline.Pipeline`."""
        self._check(stages)
        entry = self._plan.graph.entry
        self._mailbox.send(Start(request_id, GATEWAY, entry, body), self._roster.addresses()[entry])

    def abort(self, request_id: str, stages: frozenset[str], forgotten: Callable[[], None]) -> None:
        """Make the workers forget a request; see `gateway.pipeline.Pipeline`."""
        workers = {
            worker.name: worker.address
            for worker in self._roster
            if worker.ready and not stages.isdisjoint(worker.plan.stage_names)
        }
        self._mailbox.send(Abort(request_id), *workers.values())
        self._forgetting.begin(request_id, workers.keys(), forgotten)

    @property
    def problem(self) -> str | None:
        """The reason why the pipeline cannot serve all requests now, or None."""
        return "it is shutting down" if self._fleet.stopping else self._roster.problem()

    @property
    def workers(self) -> Mapping[str, WorkerReport]:
        """A report on each worker, by name."""
        return self._roster.reports()

    @property
    def stats(self) -> Mapping[str, StageStats]:
        """The latest counters of each stage, by name and in graph order. Stages whose worker has no process are left
        out.
        """
        known = {name: stats for worker in self._roster for name, stats in worker.stats.items()}
        return {name: known[name] for name in self._plan.graph.stage_names if name in known}

    @property
    def edges(self) -> Iterable[EdgeStats]:
        """The latest counters of each edge that ends in a running worker or in the main process."""
        return chain(*(worker.edges for worker in self._roster), self._own_edges.all())

    @property
    def restarts(self) -> Mapping[str, int]:
        """Number of restarts of each worker, by name."""
        return {worker.name: worker.restarts.total for worker in self._roster}

    @property
    def pids(self) -> Mapping[str, int]:
        """Process ids of the workers that run, by name."""
        return self._fleet.pids

    @property
    def launcher_pid(self) -> int:
        """Process id of the fork server."""
        return self._fleet.launcher_pid

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds. The condition is checked whenever a worker has changed or has sent its
        counters.
        """
        await self._fleet.until(condition)

    # --- messages from workers about requests ---

    def _take_work(self, message: Work, received: Received) -> None:
        taken = time.monotonic()
        self._own_edges.add(message.source, message.target, received.size, taken - received.sent)
        self._deliver(message)
        if self._plan.trace.on:
            took = Took(message.request_id, message.source, message.target, received.sent, taken, time.monotonic())
            self._noted(Notes(MAIN, taken, [took], []))

    def _take_failure(self, message: Failed, _: Received) -> None:
        self._deliver(message)

    def _take_notes(self, message: Notes, _: Received) -> None:
        self._noted(message)

    def _take_forgotten(self, message: Forgotten, _: Received) -> None:
        self._forgetting.answer(message)

    def _take_claim(self, message: Claim, _: Received) -> None:
        self._claimed(message, functools.partial(self._grant, message))

    def _grant(self, claim: Claim) -> None:
        self._mailbox.send(Granted(claim.request_id, claim.source), self._roster.addresses()[claim.source])

    def _fail_unreadable(self, request_id: str) -> None:
        error = internal("An answer of the pipeline could not be read.")
        self._deliver(Failed(request_id, COLLECTOR, error.info))

    def _report_loss(self, worker: WorkerState) -> None:
        if not worker.running:  # a process that hangs still holds data of requests until it has been killed
            self._forgetting.end_worker(worker.name)
        self._lost(frozenset(worker.plan.stage_names), worker_lost(worker.name).info)


def _grant_at_once(_: Claim, grant: Callable[[], None]) -> None:
    grant()


def _to_nobody(*_: object) -> None:
    """Ignores a message, because no receiver has been set."""
