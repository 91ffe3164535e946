"""Short jobs run before long jobs, and no job waits for ever."""

from __future__ import annotations

from stages.messages import VideoOptions
from stages.preprocessing.readers.jobs import AGEING, MOST_AGEING_SECONDS, SHORT_SECONDS, Job, JobQueue, Lane
from stages.preprocessing.readers.process import Read, Tokenise

MEDIA, TEXT = Read([], VideoOptions(), 0, []), Tokenise([], [])


def job(name: str, seconds: float, arrived: float = 0.0, question: Read | Tokenise = MEDIA) -> Job:
    return Job(name, question, seconds, arrived)


def order(*jobs: Job) -> list[str]:
    queue = JobQueue()
    for each in jobs:
        queue.put(each)
    return [taken.request_id for taken in iter(lambda: queue.take([Lane.ANY]), None)]


def test_the_shortest_goes_first_and_equals_in_order() -> None:
    assert order(job("a", 3), job("b", 1), job("c", 2), job("d", 1)) == ["b", "d", "c", "a"]


def test_a_job_that_has_waited_goes_before_shorter_ones() -> None:
    assert order(job("old", 1.0), job("new", 0.1, arrived=AGEING + 1)) == ["old", "new"]


def test_even_the_longest_job_ages() -> None:
    late = MOST_AGEING_SECONDS + 1
    assert order(job("longest", 1e9), job("new", 0.0, arrived=late)) == ["longest", "new"]
    assert order(job("longest", 1e9), job("new", 0.0, arrived=late - 2)) == ["new", "longest"]


def test_lanes_take_what_fits() -> None:
    long, short = SHORT_SECONDS + 0.1, SHORT_SECONDS
    fits = {
        name: [lane for lane in Lane if job(name, seconds, question=question).fits(lane)]
        for name, seconds, question in (
            ("short text", short, TEXT), ("long text", long, TEXT), ("short", short, MEDIA), ("long", long, MEDIA)
        )
    }  # fmt: skip
    assert fits == {
        "short text": [Lane.TEXT, Lane.SHORT, Lane.ANY],
        "long text": [Lane.ANY],
        "short": [Lane.SHORT, Lane.ANY],
        "long": [Lane.ANY],
    }


def test_a_removed_job_is_not_taken() -> None:
    queue = JobQueue()
    queue.put(job("a", 1))
    queue.put(job("b", 1))
    assert queue.remove("a")
    assert not queue.remove("a")
    assert queue.waits(Lane.SHORT)
    assert not queue.waits(Lane.TEXT)
    taken = queue.take([Lane.SHORT])
    assert taken is not None
    assert taken.request_id == "b"
    assert len(queue) == 0
