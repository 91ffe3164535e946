"""Records notes about a worker's work on traced requests, and keeps the notes until they are sent to the main process.

All times come from `time.monotonic`, which is one clock for all processes of a host. The worker sends its notes at each
heartbeat, or earlier if there are many notes. So the work on requests does not wait for the sending of notes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from omni_pipeline.wire.trace_notes import MARK, Notes, Stepped, Took

if TYPE_CHECKING:
    from omni_pipeline.wire.messages import Work

# A worker that has this number of notes sends them without waiting for its next heartbeat.
MANY = 512


class Recorder:
    """Records the notes of one worker.

    Args:
        every: Whether to record every request. If not, only requests whose id ends in `MARK` are recorded.
    """

    def __init__(self, worker: str, stages: Iterable[str], *, every: bool = True) -> None:
        self._worker = worker
        self._every = every
        self._took: list[Took] = []
        self._stepped: list[Stepped] = []
        # Times by stage and request id. `_arrived` has the times of the first and the latest message since the
        # request's latest step. `_worked` has the end of this step.
        self._arrived: dict[str, dict[str, tuple[float, float]]] = {stage: {} for stage in stages}
        self._worked: dict[str, dict[str, float]] = {stage: {} for stage in stages}

    @property
    def many(self) -> bool:
        """Whether there are enough notes to send them now."""
        return len(self._took) + len(self._stepped) >= MANY

    def took(self, message: Work, sent: float, taken: float, done: float) -> None:
        """Note that a stage has handled `message`."""
        request_id, target = message.request_id, message.target
        if not (self._every or request_id.endswith(MARK)):
            return
        self._took.append(Took(request_id, message.source, target, sent, taken, done))
        arrived = self._arrived[target]
        first, _ = arrived.get(request_id, (taken, taken))
        arrived[request_id] = first, taken

    def stepped(self, stage: str, requests: Collection[str], begin: float, end: float) -> None:
        """Note that a stage has worked on `requests`."""
        noted = list(requests) if self._every else [each for each in requests if each.endswith(MARK)]
        if not noted:
            return
        arrived, worked = self._arrived[stage], self._worked[stage]
        note = Stepped(stage, begin, end, noted, [], [], len(requests) - len(noted))
        for request_id in noted:
            before = worked.get(request_id, begin)
            first, latest = arrived.pop(request_id, (before, before))
            note.first.append(first)
            note.latest.append(latest)
            worked[request_id] = end
        self._stepped.append(note)

    def take(self, now: float, live: Mapping[str, Collection[str]]) -> Notes:
        """All notes since the last call. Drops the times of requests that have left their stage.

        Args:
            live: Ids of the requests for which each stage stores data.
        """
        for stage, held in live.items():
            for known in (self._arrived[stage], self._worked[stage]):
                for gone in known.keys() - held:
                    del known[gone]
        notes = Notes(self._worker, now, self._took, self._stepped)
        self._took, self._stepped = [], []
        return notes
