"""Clients take turns, short jobs run before long jobs, and no job waits for ever."""

from __future__ import annotations

import random

from stages.messages import VideoOptions
from stages.preprocessing.readers.jobs import (
    AGEING,
    HALF_LIFE_SECONDS,
    MOST_AGEING_SECONDS,
    SHORT_SECONDS,
    Job,
    JobQueue,
    Lane,
)
from stages.preprocessing.readers.process import Read, Tokenise

MEDIA, TEXT = Read([], VideoOptions(), 0, []), Tokenise([], [])


def job(name: str, seconds: float, arrived: float = 0.0, question: Read | Tokenise = MEDIA, sender: int = 0) -> Job:
    return Job(name, question, seconds, arrived, sender)


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


def test_a_client_with_many_jobs_delays_another_client_by_one_job() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        queue = JobQueue()
        for number in range(rng.randrange(1, 100)):
            queue.put(job(f"many{number}", rng.choice([0.01, 1.0]), arrived=rng.uniform(-1000, 0), sender=1))
        queue.put(job("one", 1e9, arrived=0.0, sender=2))
        taken = [queue.take([Lane.ANY]), queue.take([Lane.ANY], [1])]
        assert "one" in [each.request_id for each in taken if each is not None]


def test_the_client_with_the_fewest_readers_is_next() -> None:
    queue = JobQueue()
    for sender in (1, 2, 3):
        queue.put(job(f"of {sender}", sender, sender=sender))
    assert [each.sender for each in queue.in_order([1, 1, 2])] == [3, 2, 1]


def test_the_client_for_which_readers_have_worked_less_is_next_but_old_work_fades() -> None:
    queue = JobQueue()
    queue.put(job("greedy", 0.1, sender=1))
    queue.put(job("modest", 0.2, sender=2))
    queue.used(1, 100.0, now=0.0)
    queue.used(2, 1.0, now=0.0)
    assert [each.request_id for each in queue.in_order([])] == ["modest", "greedy"]
    queue.used(2, 2.0, now=20 * HALF_LIFE_SECONDS)
    assert [each.request_id for each in queue.in_order([])] == ["greedy", "modest"]
    queue.used(2, 0.0, now=100 * HALF_LIFE_SECONDS)
    assert queue._used.keys() == {2}


def test_a_client_for_which_readers_have_worked_for_long_does_not_wait_for_ever() -> None:
    queue = JobQueue()
    queue.put(job("greedy", 1e9, sender=1))
    queue.used(1, 1e9, now=0.0)
    queue.put(job("new", 0.0, arrived=2 * MOST_AGEING_SECONDS + 1, sender=2))
    assert [each.request_id for each in queue.in_order([])] == ["greedy", "new"]
