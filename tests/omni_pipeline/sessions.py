"""Runs an echo pipeline for a test, and waits for processes to end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any

from omni_pipeline.config.schema import Config, StageConfig
from omni_pipeline.deployment.resolve import resolve
from omni_pipeline.errors import ErrorInfo
from omni_pipeline.gpus import Gpu
from omni_pipeline.supervision.pipeline import Supervisor
from omni_pipeline.supervision.worker_lifecycle import StartProgress
from omni_pipeline.wire.messages import Failed, Start, Work
from tests.omni_pipeline.echo_stages import ECHO, ECHO_PATH, Answer, Text

# Maximum time for any answer of the echo pipeline, even on a busy machine.
SECONDS = 20.0


class Session:
    """A supervisor, and its reports in order: answers in one list, lost workers in another.

    Attributes:
        affected: For each lost worker, the ids of the requests that used it; None if all requests used it.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.affected: list[Collection[str] | None] = []
        self.answers: asyncio.Queue[Work | Failed] = asyncio.Queue()
        self.losses: asyncio.Queue[tuple[frozenset[str], ErrorInfo]] = asyncio.Queue()
        supervisor.connect(self.answers.put_nowait, self._lose)

    def _lose(self, stages: frozenset[str], error: ErrorInfo, requests: Collection[str] | None) -> None:
        self.affected.append(requests)
        self.losses.put_nowait((stages, error))

    async def next(self) -> Work | Failed:
        """Waits for the next answer or failure, and returns it."""
        async with asyncio.timeout(SECONDS):
            return await self.answers.get()

    async def ask(self, request_id: str, text: str, **fields: Any) -> Answer:
        """The pipeline's answer to `text`."""
        self.supervisor.submit(request_id, Text(text, **fields))
        message = await self.next()
        assert isinstance(message, Start), message
        assert message.request_id == request_id
        answer: Answer = message.body
        return answer

    async def fail(self, request_id: str, text: str) -> ErrorInfo:
        """The error with which the pipeline answers `text`."""
        self.supervisor.submit(request_id, Text(text))
        message = await self.next()
        assert isinstance(message, Failed), message
        assert message.request_id == request_id
        return message.error

    async def lost(self) -> tuple[frozenset[str], ErrorInfo]:
        """Waits for the next report of a lost worker, and returns it."""
        async with asyncio.timeout(SECONDS):
            return await self.losses.get()


def echo_config(*, worker: str | None = None, **options: dict[str, Any]) -> Config:
    """The configuration of the echo graph on the CPU, with options for each stage. All stages are in `worker`, or each
    stage has its own worker.
    """
    stages = {name: StageConfig(worker=worker, options=options.get(name, {})) for name in ECHO.stage_names}
    return Config(model_path="no/checkpoint", graph=ECHO_PATH, device="cpu", stages=stages, log_level="error")


@contextlib.asynccontextmanager
async def running(
    config: Config,
    progress: Callable[[StartProgress], None] | None = None,
    patience: float = 10.0,
    gpus: Sequence[Gpu] | None = None,
) -> AsyncIterator[Session]:
    """Run a session with the configuration `config`. Asserts that all processes of the session end with it.

    Args:
        gpus: The GPUs for the plan, instead of this machine's GPUs.
    """
    supervisor = Supervisor(resolve(config, gpus))
    session = Session(supervisor)
    try:
        await supervisor.start("no/checkpoint", progress)
        pids = [*supervisor.pids.values()]
        yield session
    finally:
        await supervisor.stop(patience)
    assert all(gone(pid) for pid in pids)


def gone(pid: int, within: float = 5.0) -> bool:
    """Whether process `pid` ends before `within` seconds have passed."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], within)[0])
    finally:
        os.close(pidfd)
