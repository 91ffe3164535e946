"""A request is bound to one replica of each group until the request ends. In a group without prefix caches, this is the
replica with the fewest open requests. In a group with prefix caches, it is the replica that can begin the answer
soonest.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from omni_pipeline.supervision.bindings import Bindings
from omni_pipeline.supervision.prompt_loads import CacheUse, PromptLoads
from omni_pipeline.supervision.replica_choice import OPEN_TOKENS, Reason
from tests.omni_pipeline.supervision.test_prefix_record import chain

WRITERS = {"writers": [0, 1, 2]}


@pytest.fixture
def prompts() -> PromptLoads:
    return PromptLoads({"writers"}, lambda group, replica: 100_000)


@pytest.fixture
def bindings(prompts: PromptLoads) -> Bindings:
    return Bindings(prompts, 1.5)


def test_equal_replicas_take_turns(bindings: Bindings) -> None:
    chosen = []
    for number in range(6):
        bound = bindings.bind(f"r{number}", {"vocoder": [0, 1, 2]}, {})
        bindings.release(f"r{number}")
        chosen.append(bound["vocoder"])
    assert chosen == [0, 1, 2, 0, 1, 2]


def test_the_replica_with_the_fewest_open_requests_is_chosen(bindings: Bindings) -> None:
    live = {"vocoder": [0, 1]}
    for number in range(4):
        bindings.bind(f"r{number}", live, {})
    bindings.release("r1")
    bindings.release("r3")
    assert [bindings.bind(f"s{number}", live, {})["vocoder"] for number in range(2)] == [1, 1]


def test_open_requests_differ_by_one_at_most_whatever_ends(bindings: Bindings) -> None:
    draw, still = random.Random(5), []
    for number in range(1000):
        bindings.bind(f"r{number}", {"a": [0, 1, 2]}, {})
        still.append(f"r{number}")
        counts = Counter(bindings.of(name)["a"] for name in still)
        if len(still) > 12:
            # The test ends a request of the replica with the most open requests. In a real server too, this replica
            # would probably be the next one that ends a request.
            longest = max(counts, key=lambda replica: counts[replica])
            gone = draw.choice([name for name in still if bindings.of(name)["a"] == longest])
            still.remove(gone)
            bindings.release(gone)
        assert max(counts.values()) - min(counts[replica] for replica in range(3)) <= 1


def test_a_request_beside_another_uses_the_same_replicas(bindings: Bindings) -> None:
    bindings.bind("whole", {"readers": [1]}, {})
    live = {"readers": [0, 1], "vocoder": [0]}
    assert bindings.bind("part", live, bindings.of("whole")) == {"readers": 1, "vocoder": 0}


def test_requests_of_a_replica_are_known_until_they_end(bindings: Bindings) -> None:
    bindings.bind("r", {"vocoder": [1]}, {})
    assert set(bindings.requests("vocoder", 1)) == {"r"}
    assert set(bindings.requests("vocoder", 0)) == set()
    bindings.release("r")
    bindings.release("r")
    assert (set(bindings.requests("vocoder", 1)), dict(bindings.of("r"))) == (set(), {})


# --- groups with prefix caches ----------------------------------------------------------------------------------------


def test_the_turns_of_a_conversation_stay_at_one_replica(bindings: Bindings) -> None:
    chosen: dict[str, set[int]] = {}
    for turn in range(1, 5):
        # if prefixes were ignored, each conversation would get another replica for its next turn
        for name in ("ann", "bob"):
            request = f"{name} {turn}"
            prompt = chain(name, *map(str, range(turn)), tokens=50)
            chosen.setdefault(name, set()).add(bindings.bind(request, WRITERS, {}, prompt)["writers"])
            bindings.release(request)
    assert chosen == {"ann": {0}, "bob": {1}}
    [report] = bindings.routes()
    assert report.choices == {Reason.PREFIX: 6, Reason.LOAD: 2, Reason.ONLY: 0}


def test_a_shared_beginning_spreads_when_many_requests_have_it(bindings: Bindings) -> None:
    for number in range(30):
        bindings.bind(f"r{number}", WRITERS, {}, chain("system", str(number), tokens=100))
    assert [len(bindings.requests("writers", replica)) for replica in range(3)] == [10, 10, 10]


def test_waiting_prompts_count(bindings: Bindings, prompts: PromptLoads) -> None:
    bindings.bind("long", {"writers": [0]}, {}, chain("x", tokens=5000))
    for number in range(3):
        bindings.bind(f"r{number}", {"writers": [1]}, {}, chain("y", tokens=1))
    live = {"writers": [0, 1]}
    assert bindings.bind("s", live, {}, chain("z", tokens=10)) == {"writers": 1}
    prompts.computed("long")
    assert bindings.bind("t", live, {}, chain("q", tokens=10)) == {"writers": 0}


def test_groups_without_prefix_caches_ignore_prompts(bindings: Bindings) -> None:
    chosen = []
    for number in range(4):
        chosen.append(bindings.bind(f"r{number}", {"vocoder": [0, 1]}, {}, chain("a"))["vocoder"])
        bindings.release(f"r{number}")
    assert chosen == [0, 1, 0, 1]
    [report] = bindings.routes()
    assert (report.choices[Reason.LOAD], report.use) == (4, None)


def test_a_fixed_replica_is_no_choice(bindings: Bindings) -> None:
    bindings.bind("r", WRITERS, {"writers": 2}, chain("a"))
    [report] = bindings.routes()
    assert (report.choices[Reason.ONLY], report.use) == (1, CacheUse())
    bindings.release("r")
    assert bindings.bind("s", WRITERS, {}, chain("a", "b")) == {"writers": 2}


def test_random_arrivals_overload_no_replica_while_others_idle(bindings: Bindings, prompts: PromptLoads) -> None:
    draw, still = random.Random(11), []

    def load(replica: int) -> int:
        return prompts.waiting("writers", replica) + OPEN_TOKENS * len(bindings.requests("writers", replica))

    for number in range(3000):
        # Half of the requests belong to one popular conversation.
        name = draw.choice(("popular", str(draw.randrange(20))))
        prompt = chain(name, *(str(turn) for turn in range(draw.randrange(6))), tokens=draw.randrange(1, 400))
        before = [load(replica) for replica in range(3)]
        replica = bindings.bind(f"r{number}", WRITERS, {}, prompt)["writers"]
        still.append(f"r{number}")
        mean = (sum(before) + prompt.tokens + OPEN_TOKENS) / 3
        assert before[replica] <= 1.5 * mean or before[replica] == min(before)
        assert min(before) > 0 or before[replica] <= prompt.tokens
        for request in draw.sample(still, draw.randrange(len(still) + 1) if len(still) > 20 else 1):
            if draw.random() < 0.5:
                prompts.computed(request)
            else:
                bindings.release(request)
                still.remove(request)
    for request in still:
        bindings.release(request)
    assert [load(replica) for replica in range(3)] == [0, 0, 0]
