"""Orders the work for readers: short work comes before long work, but no job waits for ever.

Every job has an estimate of its time. A job that waits for `AGEING` times its estimate, at most `MOST_AGEING_SECONDS`,
goes before every job that arrives after that. Readers have lanes, so that long jobs never occupy all readers.
"""

from __future__ import annotations

import enum
from collections.abc import Collection

from msgspec import Struct

from stages.preprocessing.readers.process import Question, Tokenise

# A job whose estimated time is more than this number of seconds is a long job.
SHORT_SECONDS = 2.0

AGEING = 10.0
MOST_AGEING_SECONDS = 60.0


class Lane(enum.IntEnum):
    """The jobs that a reader takes: short texts, short jobs of every kind, or all jobs. The narrowest lane comes
    first.
    """

    TEXT = 0
    SHORT = 1
    ANY = 2


class Job(Struct):
    """One question of a request.

    Attributes:
        request_id: The request; it has at most one job at a time.
        question: The question to a reader.
        seconds: Estimated time.
        arrived: Time at which the job was submitted.
        long: Whether only a reader that takes all jobs may take this job.
        lost: The way in which an earlier reader ended before it had begun with this job; None if no reader has lost the
            job.
    """

    request_id: str
    question: Question
    seconds: float
    arrived: float
    long: bool = False
    lost: str | None = None

    def __post_init__(self) -> None:
        self.long = self.long or self.seconds > SHORT_SECONDS

    @property
    def turn(self) -> float:
        """The sort key of the job: jobs with smaller keys are taken first."""
        return self.arrived + min(AGEING * self.seconds, MOST_AGEING_SECONDS)

    def fits(self, lane: Lane) -> bool:
        """Whether a reader of this lane takes the job."""
        match lane:
            case Lane.TEXT:
                return not self.long and isinstance(self.question, Tokenise)
            case Lane.SHORT:
                return not self.long
            case Lane.ANY:
                return True


class JobQueue:
    """The jobs that wait for a reader."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> None:
        """Add a job."""
        self._jobs.append(job)
        self._jobs.sort(key=lambda each: each.turn)

    def take(self, lanes: Collection[Lane]) -> Job | None:
        """Remove and return the next job that fits one of these lanes."""
        for index, job in enumerate(self._jobs):
            if any(job.fits(lane) for lane in lanes):
                return self._jobs.pop(index)
        return None

    def waits(self, lane: Lane) -> bool:
        """Whether a job waits that fits this lane."""
        return any(job.fits(lane) for job in self._jobs)

    def remove(self, request_id: str) -> bool:
        """Remove a request's job. Returns whether there was one."""
        count = len(self._jobs)
        self._jobs = [job for job in self._jobs if job.request_id != request_id]
        return len(self._jobs) < count
