"""Orders the work for readers: clients take turns, short work comes before long work, and no job waits for ever.

The next job comes from the client that has the fewest readers at work. If several clients have equally few readers at
work, the job with the earliest turn goes first. The jobs of one client also go in the order of their turns. The *turn*
is a time: the job's arrival, plus `AGEING` times the estimated time of the job, plus the time for which readers have
recently worked for the client. Each of these two additions is at most `MOST_AGEING_SECONDS`.

Each reader has a lane, which is the set of jobs that the reader accepts. So long jobs never occupy all readers.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable

from msgspec import Struct

from stages.preprocessing.readers.process import Check, Question, Tokenise
from stages.queue_order import take_turns

# A job whose estimated time is more than this number of seconds is a long job.
SHORT_SECONDS = 2.0

AGEING = 10.0
MOST_AGEING_SECONDS = 60.0

# Half-life of the time for which readers have worked for a client: recent work counts more than earlier work.
HALF_LIFE_SECONDS = 30.0
_FORGOTTEN_SECONDS = 0.001  # a smaller time is forgotten


class Lane(enum.IntEnum):
    """The kinds of jobs that a reader accepts: short texts and grammars, short jobs of every kind, or all jobs. The
    lane with the fewest kinds comes first.
    """

    TEXT = 0
    SHORT = 1
    ANY = 2


class Job(Struct):
    """One question of a request.

    Attributes:
        request_id: Id of the request. A request has at most one job at a time.
        question: The question to a reader.
        seconds: Estimated time.
        arrived: Time at which the job was submitted.
        sender: Number of the client, see `messages.Sampling.sender`.
        long: Whether the job is long, so that only a reader for all jobs accepts it.
        lost: If a reader received this job and ended without beginning the job, a text that describes how the reader
            ended. Otherwise None.
    """

    request_id: str
    question: Question
    seconds: float
    arrived: float
    sender: int = 0
    long: bool = False
    lost: str | None = None

    def __post_init__(self) -> None:
        self.long = self.long or self.seconds > SHORT_SECONDS

    @property
    def turn(self) -> float:
        """The turn of the job, if readers have not worked for its client recently."""
        return self.arrived + min(AGEING * self.seconds, MOST_AGEING_SECONDS)

    def fits(self, lane: Lane) -> bool:
        """Whether a reader of this lane accepts the job."""
        match lane:
            case Lane.TEXT:
                return not self.long and isinstance(self.question, Tokenise | Check)
            case Lane.SHORT:
                return not self.long
            case Lane.ANY:
                return True


class JobQueue:
    """The jobs that wait for a reader, and the time for which readers have recently worked for each client."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._used: dict[int, float] = {}  # by sender; valid at the time `_used_at`
        self._used_at = 0.0

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> None:
        """Add a job."""
        self._jobs.append(job)

    def used(self, sender: int, seconds: float, now: float) -> None:
        """Note that a reader has worked for a sender. `now` and `Job.arrived` are times of the same clock."""
        faded = 0.5 ** (max(now - self._used_at, 0.0) / HALF_LIFE_SECONDS)
        self._used = {each: old * faded for each, old in self._used.items() if old * faded > _FORGOTTEN_SECONDS}
        self._used[sender] = self._used.get(sender, 0.0) + seconds
        self._used_at = now

    def in_order(self, running: Iterable[int]) -> list[Job]:
        """The jobs in the order in which they should run.

        Args:
            running: The sender of each job that a reader works on.
        """
        jobs = sorted(self._jobs, key=self._turn)
        return [jobs[index] for index in take_turns([job.sender for job in jobs], running)]

    def take(self, lanes: Collection[Lane], running: Iterable[int] = ()) -> Job | None:
        """Remove and return the next job that fits one of these lanes. `running` is the same as in `in_order`."""
        for job in self.in_order(running):
            if any(job.fits(lane) for lane in lanes):
                self._jobs.remove(job)
                return job
        return None

    def _turn(self, job: Job) -> float:
        return job.turn + min(self._used.get(job.sender, 0.0), MOST_AGEING_SECONDS)

    def waits(self, lane: Lane) -> bool:
        """Whether a job for this lane is waiting."""
        return any(job.fits(lane) for job in self._jobs)

    def remove(self, request_id: str) -> bool:
        """Remove a request's job. Returns whether there was one."""
        count = len(self._jobs)
        self._jobs = [job for job in self._jobs if job.request_id != request_id]
        return len(self._jobs) < count
