"""Logs the progress of the server's start, for programs that read logs. `start_terminal` shows it to people."""

from __future__ import annotations

import logging

from omni_pipeline import __version__
from omni_pipeline.deployment.resolve import Deployment
from omni_pipeline.logs import fields
from omni_pipeline.supervision.fork_server import Preloaded
from omni_pipeline.supervision.worker_lifecycle import StartProgress

log = logging.getLogger("omni_pipeline.start")


class LogDisplay:
    """A `service.Display` that logs."""

    def begin(self, deployment: Deployment) -> None:
        workers = [worker.name for worker in deployment.workers if not worker.spare]
        log.info("starting", extra=fields(version=__version__, model_path=deployment.model_path, workers=workers))

    def note(self, text: str) -> None:
        log.info("%s", text)

    def progress(self, event: StartProgress) -> None:
        if isinstance(event, Preloaded):
            log.info("libraries imported", extra=fields(seconds=event.seconds))
        else:
            log.info("worker loaded", extra=fields(worker=event.worker, worker_pid=event.pid, seconds=event.seconds))

    def loaded(self, url: str, seconds: float) -> None:
        log.info("listening", extra=fields(url=url, seconds=seconds))

    def ready(self, url: str, seconds: float) -> None:
        log.info("ready", extra=fields(url=url, seconds=seconds))

    def stopping(self) -> None:
        log.info("stopping")
