"""Runs jobs in several reader processes at a time, without ever waiting for one of them.

The stage calls the pool in its steps: `collect` receives the readers' messages, and `dispatch` sends the readers their
next jobs. Between steps, `waits_on` becomes readable as soon as there is something to collect or to send.

A reader is killed and replaced in these cases:
- The request of its job ends.
- The job takes too long.
- The job was expected to be short, but turns out to be long while other short jobs wait. Then the job runs again as a
  long job.
- The client of the reader's job uses at least two readers more than another client, and a job of this other client has
  waited for `YIELD_SECONDS`. Then the reader's job runs again later.
- The reader has ended its job and has a low priority, because the job was long. See `ReaderPool._lower`.
If a reader ends by itself, only its job is affected: see `ReaderPool._lose`.
"""

from __future__ import annotations

import enum
import logging
import select
import time
from collections import Counter, deque
from collections.abc import Iterator

from msgspec import Struct, structs

from omni_pipeline.contract.stage import StageBroken
from omni_pipeline.cpu_detection import available_cores
from omni_pipeline.errors import ErrorInfo, OmniError, bad_request, unavailable
from omni_pipeline.os_process import lower_priority, usage
from omni_pipeline.wire.codec import Codec, WireError
from omni_pipeline.wire.messages import Chunk, End, Failed, Start
from omni_pipeline.wire.tensor import Buffer
from stages.messages import Grammar
from stages.preprocessing.cpu_time import OUT_OF_TIME
from stages.preprocessing.readers.channel import Channel
from stages.preprocessing.readers.jobs import Job, JobQueue, Lane
from stages.preprocessing.readers.nursery import Born, Nursery, NurseryLost
from stages.preprocessing.readers.process import (
    EDGES,
    READER,
    STAGE,
    Answer,
    Check,
    Cut,
    Drop,
    Greeting,
    Measure,
    Question,
    Read,
    ReaderWork,
    Reading,
    Survey,
    Tokenise,
    be_reader,
)

# A job that was expected to be short may take this much CPU time and this much elapsed time. A job that exceeds a limit
# is stopped only while other short jobs wait. Otherwise, its reader gets a low priority.
OVERRUN_CPU_SECONDS = 0.5
OVERRUN_SECONDS = 10.0

# Time between two checks. A check looks for jobs that should be short but have used too much CPU time, and for clients
# that should give a reader to another client.
LOOK_SECONDS = 0.5

# When a job has waited for this time, a client that uses at least two readers more than the job's client must give up
# one of its readers. If there is no such client, the job waits longer.
YIELD_SECONDS = 1.0

# The niceness of readers with long jobs (see `nice(2)`), which gives them a low priority. So if there are too few
# cores, a file that takes long to decode delays only its own request. It does not delay answers that are being
# generated.
NICENESS = 10

# If this number of readers, one after the other, have ended before they were ready, no further reader is started.
MOST_FAILED_STARTS = 3

# Bounds on the number of readers that decode media. With fewer than two readers, long jobs would leave no reader for
# short jobs.
LEAST_READERS, MOST_READERS = 2, 8

logger = logging.getLogger(__name__)


class State(enum.Enum):
    """The state of a reader."""

    STARTING = enum.auto()
    IDLE = enum.auto()
    BUSY = enum.auto()


class Reader:
    """One reader of the pool. Its process may be replaced.

    Attributes:
        lane: The kind of jobs that the reader takes.
        state: The reader's state.
        channel: Messages to and from the process.
        pid: The process's id; 0 until the nursery has reported it.
        greeted: Whether the process has sent its greeting.
        how: A text that describes how the process has ended; None while it runs.
        job: The job that the reader works on.
        reserved: The job that the previous process received but did not begin. When the new process is ready, it gets
            this job first.
        begun: Time at which the reader received the job.
        cpu_before: CPU seconds that the process had used before the job.
        item: Index of the media item that the reader has begun to read; None if the reader has not begun an item.
        held: Id of the request whose media the reader still has in memory after a survey.
        lowered: Whether the process has a low priority.
    """

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.channel: Channel | None = None
        self.reserved: Job | None = None
        self.restart(None)

    def restart(self, channel: Channel | None) -> None:
        """Forget the previous process."""
        self.channel = channel
        self.state = State.STARTING
        self.pid = 0
        self.greeted = False
        self.how: str | None = None
        self.job: Job | None = None
        self.begun = 0.0
        self.cpu_before = 0.0
        self.item: int | None = None
        self.held: str | None = None
        self.lowered = False
        self.watched = 0


class Done(Struct, frozen=True):
    """A job has ended, with an answer or with an error of its request."""

    request_id: str
    result: Answer | ErrorInfo


def reader_count(wanted: int | None) -> int:
    """The number of readers that decode media: `wanted` or, if this is None, one reader for each core, within
    bounds.
    """
    return wanted or min(max(available_cores(), LEAST_READERS), MOST_READERS)


class ReaderPool:
    """Several readers, and the jobs that wait for the readers. Create the pool before any stage computes.

    Args:
        work: The work that readers do.
        count: Number of readers that decode media, at least two. One of these readers accepts only short jobs. One
            additional reader is for short texts.
        seconds: Time limit of one job.

    Attributes:
        cancelled: Number of jobs that ended because their request ended.
        restarted: Number of readers that were replaced.
        demoted: Number of jobs that were expected to be short but were long.
        displaced: Number of jobs that were stopped, and will be started again, to give their reader to another client.
    """

    def __init__(self, work: ReaderWork, count: int, seconds: float) -> None:
        self._seconds = seconds
        self._codec = Codec(EDGES)
        self._queue = JobQueue()
        self._done: list[Done] = []
        self._failed_starts = 0
        self.cancelled = self.restarted = self.demoted = self.displaced = 0
        self._due = float("inf")  # the next time at which something must be done although no reader sends anything
        self._nursery = Nursery(lambda its: be_reader(work, its))
        self._epoll = select.epoll()
        self._epoll.register(self._nursery.fileno(), select.EPOLLIN)
        lanes = [Lane.TEXT, Lane.SHORT, *[Lane.ANY] * (count - 1)]
        self._readers = [Reader(lane) for lane in lanes]
        # the readers that are being started, in the order in which the nursery reports them
        self._starting: deque[tuple[Reader, Channel]] = deque()
        for reader in self._readers:
            self._start(reader)

    @property
    def waits_on(self) -> int:
        """A descriptor that is readable when there is something to collect."""
        return self._epoll.fileno()

    @property
    def has_news(self) -> bool:
        """Whether there is something to collect now."""
        return bool(self._done) or time.monotonic() >= self._due or bool(self._epoll.poll(0))

    @property
    def count(self) -> int:
        """Number of readers."""
        return len(self._readers)

    @property
    def queued(self) -> int:
        """Number of jobs that wait for a reader."""
        return len(self._queue) + sum(reader.reserved is not None for reader in self._readers)

    @property
    def busy(self) -> int:
        """Number of readers at work."""
        return sum(reader.state is State.BUSY for reader in self._readers)

    def submit(self, request_id: str, question: Question, seconds: float, sender: int = 0) -> None:
        """Queue a job.

        Args:
            request_id: A request without a job.
            question: The question. The media of a `Read` or a `Cut` are not sent if a reader still has these media.
            seconds: Estimated time of the job.
            sender: Number of the client, see `messages.Sampling.sender`.
        """
        self._queue.put(Job(request_id, question, seconds, time.monotonic(), sender))

    def cancel(self, request_id: str) -> None:
        """End a request's job, if it has one, and free its reader at once."""
        self._done = [done for done in self._done if done.request_id != request_id]
        touched = self._queue.remove(request_id)
        for reader in self._readers:
            if reader.reserved is not None and reader.reserved.request_id == request_id:
                touched, reader.reserved = True, None
            if reader.job is not None and reader.job.request_id == request_id:
                touched = True
                self._replace(reader)
        self.cancelled += touched
        if touched or any(reader.held == request_id for reader in self._readers):
            self.dispatch()

    def collect(self) -> list[Done]:
        """Receive the readers' messages. Returns the jobs that have ended.

        Raises:
            StageBroken: No readers can be started.
        """
        try:
            self._hear_nursery()
            for reader in self._readers:
                self._hear(reader)
        except NurseryLost as error:
            raise StageBroken("the process that starts the reader processes has ended") from error
        now = time.monotonic()
        for reader in self._readers:
            if reader.job is not None and now >= reader.begun + self._seconds:
                self._give_up(reader)
        done, self._done = self._done, []
        return done

    def dispatch(self) -> None:
        """Send idle readers their next jobs."""
        self._demote_overrunning()
        self._displace()
        for reader in self._readers:
            if reader.state is State.IDLE and reader.lowered:
                self._replace(reader)  # only a new process has a normal priority
        for reader in self._readers:
            if reader.state is State.IDLE and reader.reserved is not None:
                reserved, reader.reserved = reader.reserved, None
                self._give(reader, reserved)
        while lanes := {reader.lane for reader in self._readers if reader.state is State.IDLE}:
            job = self._queue.take(lanes, self._running().elements())
            if job is None:
                break
            self._assign(job)
        self._drop_held()
        for reader in self._readers:
            if reader.channel is not None:
                reader.channel.flush()
        self._watch()

    def close(self) -> None:
        """End all readers."""
        if self._epoll.closed:
            return
        self._epoll.close()
        for reader in self._readers:
            if reader.channel is not None:
                reader.channel.close()
        self._nursery.close()

    # --- jobs ---

    def _assign(self, job: Job) -> None:
        """Send a job to the idle reader that already has the job's media. If no idle reader has these media, send the
        job to the idle reader whose lane has the fewest kinds of jobs.
        """
        idle = [each for each in self._readers if each.state is State.IDLE and job.fits(each.lane)]
        self._give(min(idle, key=lambda each: (each.held != job.request_id, each.lane)), job)

    def _give(self, reader: Reader, job: Job) -> None:
        question = job.question
        if isinstance(question, Read | Cut) and reader.held == job.request_id:
            question = structs.replace(question, media=[], held=True)
        reader.held = job.request_id if isinstance(question, Survey | Measure) else None
        reader.state, reader.job, reader.begun, reader.item = State.BUSY, job, time.monotonic(), None
        reader.cpu_before = _cpu_seconds(reader.pid)
        if job.long:
            self._lower(reader)
        self._send(reader, question)

    def _send(self, reader: Reader, question: Question | Drop) -> None:
        assert reader.channel is not None
        reader.channel.send(self._codec.encode(Start("", STAGE, READER, question)))

    def _drop_held(self) -> None:
        """Tell idle readers to drop the media that they kept from a survey. `dispatch` calls this method after it has
        assigned jobs. At this time, a reader that has received the `Read` for its media is busy, so it keeps its media.
        """
        for reader in self._readers:
            if reader.state is State.IDLE and reader.held is not None:
                reader.held = None
                self._send(reader, Drop())

    def _finish(self, reader: Reader, result: Answer | ErrorInfo) -> None:
        assert reader.job is not None
        if isinstance(result, ErrorInfo):
            reader.held = None
        self._done.append(Done(reader.job.request_id, result))
        self._count_use(reader, reader.job)
        reader.job, reader.state = None, State.IDLE

    def _give_up(self, reader: Reader) -> None:
        """End a job that takes too long."""
        assert reader.job is not None
        self._finish(reader, _too_slow(reader.job.question, reader.item or 0, self._seconds).info)
        self._replace(reader)

    def _demote_overrunning(self) -> None:
        """Find jobs that were expected to be short, but turn out to be long. If the reader accepts only short jobs, and
        short jobs wait, replace the reader, and queue its job again as a long job. Otherwise, give the reader a low
        priority.
        """
        for reader in self._readers:
            job = reader.job
            if job is None or job.long or not _overruns(reader):
                continue
            if reader.lane is not Lane.ANY and self._queue.waits(reader.lane) and not self._idle(reader.lane):
                self.demoted += 1
                self._queue.put(structs.replace(self._stop(reader), long=True))
            else:
                self._lower(reader)

    def _displace(self) -> None:
        """Take a reader from a client that uses at least two readers more than the client of a waiting job.

        The client with the most readers loses the reader of its latest job. So the oldest job of a client always
        reaches its end.
        """
        running = self._running()
        if not running or max(running.values()) < 2 or not len(self._queue):
            return
        patient = time.monotonic() - YIELD_SECONDS
        for job in self._queue.in_order(running.elements()):
            if job.arrived > patient or any(job.fits(each.lane) for each in self._readers if each.job is None):
                continue  # the job has not waited for long, or a reader is idle or starting
            own = running[job.sender]
            rich = [
                (running[each.job.sender], each.begun, each)
                for each in self._readers
                if each.job is not None and job.fits(each.lane) and running[each.job.sender] >= own + 2
            ]
            if rich:
                reader = max(rich, key=lambda one: one[:2])[2]
                self.displaced += 1
                self._queue.put(self._stop(reader))
                return

    def _stop(self, reader: Reader) -> Job:
        """Replace a reader in the middle of its job. Returns the job."""
        job = reader.job
        assert job is not None
        self._count_use(reader, job)
        self._replace(reader)
        return job

    def _count_use(self, reader: Reader, job: Job) -> None:
        now = time.monotonic()
        self._queue.used(job.sender, now - reader.begun, now)

    def _running(self) -> Counter[int]:
        """The number of readers that work for each sender."""
        jobs = [job for reader in self._readers for job in (reader.job, reader.reserved) if job is not None]
        return Counter(job.sender for job in jobs)

    def _idle(self, lane: Lane) -> bool:
        return any(each.state is State.IDLE and each.lane >= lane for each in self._readers)

    # --- processes ---

    def _start(self, reader: Reader) -> None:
        try:
            channel = Channel(self._nursery.fork())
        except NurseryLost as error:
            raise StageBroken("the process that starts the reader processes has ended") from error
        reader.restart(channel)
        self._starting.append((reader, channel))

    def _replace(self, reader: Reader) -> None:
        """Kill a reader, and start another in its place."""
        assert reader.channel is not None
        self.restarted += 1
        self._unwatch(reader)
        if reader.how is None:
            self._nursery.kill(reader.pid)
        reader.channel.close()
        self._start(reader)

    def _lower(self, reader: Reader) -> None:
        """Give a reader a low priority, because its job is long.

        Short jobs have a normal priority. With a low priority, a job of some milliseconds would take a second on a busy
        machine, and the short jobs behind it would wait.
        """
        if not reader.lowered and reader.pid:
            reader.lowered = True
            lower_priority(reader.pid, NICENESS)

    def _hear_nursery(self) -> None:
        for report in self._nursery.reports():
            if isinstance(report, Born):
                reader, channel = self._starting.popleft()
                if reader.channel is channel:
                    reader.pid = report.pid
                    reader.how = None if report.pid else "the process could not be started"
                    self._be_idle_if_up(reader)
                continue
            for reader in self._readers:
                if reader.pid == report.pid:
                    reader.how = report.how

    def _hear(self, reader: Reader) -> None:
        """Process a reader's messages, and the end of its process."""
        assert reader.channel is not None
        for frames in self._messages(reader, reader.channel):
            try:
                message = self._codec.decode(frames)
            except WireError:
                logger.exception("a reader process has sent an unreadable message and is being ended")
                self._nursery.kill(reader.pid)
                break
            if isinstance(message, Failed):
                self._finish(reader, message.error)
            elif isinstance(message, End):
                self._finish(reader, message.body)
            elif isinstance(message, Chunk) and isinstance(message.body, Reading):
                reader.item = message.body.index
            elif isinstance(message, Chunk) and isinstance(message.body, Greeting):
                self._failed_starts = 0
                reader.greeted = True
                self._be_idle_if_up(reader)
        if reader.how is not None:
            self._lose(reader, reader.how)
        elif reader.channel.ended and reader.pid:
            self._nursery.kill(reader.pid)  # the reader has usually ended, and the report of its end is on the way

    def _messages(self, reader: Reader, channel: Channel) -> Iterator[list[Buffer]]:
        """The messages that have arrived from a reader. If the reader has ended, these are all of its remaining
        messages.
        """
        yield from channel.receive()
        while reader.how is not None and not channel.ended:
            yield from channel.receive()

    def _be_idle_if_up(self, reader: Reader) -> None:
        if reader.pid and reader.greeted and reader.state is State.STARTING:
            reader.state = State.IDLE

    def _lose(self, reader: Reader, how: str) -> None:
        """Replace a reader that has ended by itself.

        If the reader had begun to read a media item, this item has crashed its decoder or used too much CPU time. So
        the request is refused. If the reader had not begun, a new reader gets the job once more. If the new reader ends
        too, the job fails.

        Raises:
            StageBroken: Several readers, one after the other, have ended before they were ready.
        """
        logger.warning("a process that reads media has ended (%s) and is being replaced", how)
        if not reader.greeted:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                raise StageBroken(
                    f"{self._failed_starts} processes that read media ended in a row before they were ready; "
                    f"the last one ended as follows: {how}"
                )
        job = reader.job
        if job is not None:
            if reader.item is not None:
                self._finish(reader, _fault(job.question, reader.item, how).info)
            elif job.lost is None:
                reader.reserved = structs.replace(job, lost=how)
            else:
                self._finish(reader, _lost_twice(job.lost, how).info)
        self._replace(reader)

    # --- waking ---

    def _watch(self) -> None:
        """Update the descriptors that wake the loop, and the time at which the loop must check the jobs again."""
        for reader in self._readers:
            channel = reader.channel
            assert channel is not None
            wanted = 0 if channel.ended else select.EPOLLIN | (select.EPOLLOUT if channel.has_output else 0)
            if wanted == reader.watched:
                continue
            if not wanted:
                self._unwatch(reader)
            elif reader.watched:
                self._epoll.modify(channel.fileno(), wanted)
            else:
                self._epoll.register(channel.fileno(), wanted)
            reader.watched = wanted
        self._due = min((self._due_of(reader) for reader in self._readers if reader.job), default=float("inf"))

    def _due_of(self, reader: Reader) -> float:
        assert reader.job is not None
        limit = reader.begun + self._seconds
        may_overrun = reader.job.long or (reader.lowered and not self._queue.waits(reader.lane))
        return limit if may_overrun and not self._may_yield else min(limit, time.monotonic() + LOOK_SECONDS)

    @property
    def _may_yield(self) -> bool:
        """Whether a client may soon have to give a reader to a job that waits."""
        return bool(len(self._queue)) and max(self._running().values(), default=0) > 1

    def _unwatch(self, reader: Reader) -> None:
        if reader.watched:
            assert reader.channel is not None
            self._epoll.unregister(reader.channel.fileno())
            reader.watched = 0


def _cpu_seconds(pid: int) -> float:
    used = usage(pid)
    return 0.0 if used is None else used.cpu_seconds


def _overruns(reader: Reader) -> bool:
    """Whether a job that should be short has used too much CPU time or has run for too long. The limit on elapsed time
    is larger, because even a short job may take long on a busy machine.
    """
    return (
        time.monotonic() >= reader.begun + OVERRUN_SECONDS
        or _cpu_seconds(reader.pid) >= reader.cpu_before + OVERRUN_CPU_SECONDS
    )


def _too_slow(question: Question, item: int, seconds: float) -> OmniError:
    if isinstance(question, Tokenise):
        return bad_request(
            f"Tokenising the messages took longer than {seconds:g} s.", param="messages", code="text_too_slow"
        )
    if isinstance(question, Check):
        return _too_complex(question.grammar)
    param = question.media[item].param
    return bad_request(f"Reading '{param}' took longer than {seconds:g} s.", param=param, code="media_too_slow")


def _fault(question: Question, item: int, how: str) -> OmniError:
    """The error for a media item or a grammar that has crashed its reader. `how` is the signal or exit code of the
    reader.
    """
    assert not isinstance(question, Tokenise)
    if isinstance(question, Check):
        return _too_complex(question.grammar)
    medium = question.media[item]
    if how == OUT_OF_TIME.name:
        message = f"Reading '{medium.param}' used more CPU time than is allowed for media of this size."
        return bad_request(message, param=medium.param, code="media_too_slow")
    message = f"The {medium.kind} cannot be decoded: its decoder crashed."
    return bad_request(message, param=medium.param, code=f"invalid_{medium.kind}")


def _too_complex(grammar: Grammar) -> OmniError:
    return bad_request(
        f"Invalid '{grammar.param}': this grammar is too complex; its compilation took too long or crashed.",
        param=grammar.param,
        code="grammar_too_complex",
    )


def _lost_twice(first: str, second: str) -> OmniError:
    return unavailable(
        "The texts and media of this request could not be read: two processes, one after the other, ended while they "
        f"worked on this request ({first}, {second}).",
        code="reader_lost",
    )
