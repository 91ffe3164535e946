"""What a worker notes about single requests when they are traced, and how it gets to the main process.

Times are those of `time.monotonic`, which is one clock for all processes of a host. Notes are kept in the worker and
sent with its heartbeats, or when there are many, so that no request waits for them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from omni_pipeline.wire import Work

# Notes that a worker sends without waiting for its next heartbeat.
MANY = 512


class Took(Struct, array_like=True):
    """A message has been taken up by a stage, or by the main process.

    Attributes:
        sent: When it left its sender's step.
        taken: When it was taken up.
        done: When the receiver had dealt with it, as far as it does so at once.
    """

    request_id: str
    source: str
    target: str
    sent: float
    taken: float
    done: float


class Stepped(Struct, array_like=True):
    """A stage has worked on a batch from `begin` to `end`.

    Attributes:
        requests: Whom it worked on.
        since: For each of them, since when there was something to do.
    """

    stage: str
    begin: float
    end: float
    requests: list[str]
    since: list[float]


class Notes(Struct, tag="notes"):
    """What one process has noted up to the time `until`."""

    worker: str
    until: float
    took: list[Took]
    stepped: list[Stepped]


class Recorder:
    """Notes what one worker does.

    A request waits in a stage from the first message that no step has seen, or, where a stage goes on without being
    told, from the end of its latest step.
    """

    def __init__(self, worker: str, stages: Iterable[str]) -> None:
        self._worker = worker
        self._took: list[Took] = []
        self._stepped: list[Stepped] = []
        self._arrived: dict[str, dict[str, float]] = {stage: {} for stage in stages}
        self._worked: dict[str, dict[str, float]] = {stage: {} for stage in stages}

    @property
    def many(self) -> bool:
        """Whether so much has been noted that it should be sent."""
        return len(self._took) + len(self._stepped) >= MANY

    def took(self, message: Work, sent: float, taken: float, done: float) -> None:
        """A stage has taken up `message`."""
        request_id, target = message.request_id, message.target
        self._took.append(Took(request_id, message.source, target, sent, taken, done))
        self._arrived[target].setdefault(request_id, taken)

    def stepped(self, stage: str, requests: Collection[str], begin: float, end: float) -> None:
        """A stage has worked on `requests`."""
        arrived, worked = self._arrived[stage], self._worked[stage]
        since = []
        for request_id in requests:
            waited = arrived.pop(request_id, None)
            since.append(worked.get(request_id, begin) if waited is None else waited)
            worked[request_id] = end
        self._stepped.append(Stepped(stage, begin, end, list(requests), since))

    def take(self, now: float, live: Mapping[str, Collection[str]]) -> Notes:
        """All notes since last time. What is known of requests that a stage no longer holds is dropped.

        Args:
            live: The requests that each stage holds.
        """
        for stage, held in live.items():
            for times in (self._arrived[stage], self._worked[stage]):
                for gone in times.keys() - held:
                    del times[gone]
        notes = Notes(self._worker, now, self._took, self._stepped)
        self._took, self._stepped = [], []
        return notes
