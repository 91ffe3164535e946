"""An aborted request is forgotten when no worker and no connection between workers can still hold data of the
request.
"""

from __future__ import annotations

import pytest

from omni_pipeline.supervision.forgetting import Forgetting, receivers_of
from omni_pipeline.wire.messages import Forgotten

RECEIVERS = {"a": {"b"}, "b": {"c", "a"}, "c": set[str]()}


class Watched:
    """Records the requests that have been forgotten, in order."""

    def __init__(self) -> None:
        self.forgetting = Forgetting(RECEIVERS)
        self.done: list[str] = []

    def begin(self, request_id: str, *workers: str) -> None:
        self.forgetting.begin(request_id, workers, lambda: self.done.append(request_id))

    def answer(self, request_id: str, *connections: str) -> None:
        for connection in connections:
            sender, worker = connection.split(">")
            self.forgetting.answer(Forgotten(request_id, worker, sender))


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_every_connection_has_to_answer_in_any_order(watched: Watched) -> None:
    watched.begin("r", "a", "b", "c")
    watched.answer("r", "b>c", ">c", ">b", ">a", "b>a")
    assert watched.done == []
    watched.answer("r", "a>b")
    assert (watched.done, len(watched.forgetting)) == (["r"], 0)


def test_only_connections_between_the_asked_workers_count(watched: Watched) -> None:
    watched.begin("r", "a", "c")
    watched.answer("r", ">c", ">a")
    assert watched.done == ["r"]


def test_request_that_no_worker_knows_is_forgotten_at_once(watched: Watched) -> None:
    watched.begin("r")
    assert watched.done == ["r"]


def test_worker_that_ends_has_answered_for_all_its_connections(watched: Watched) -> None:
    watched.begin("r", "a", "b", "c")
    watched.begin("s", "a")
    watched.answer("r", ">a", ">c")
    watched.forgetting.end_worker("b")
    assert watched.done == ["r"]
    watched.forgetting.end_worker("a")
    assert watched.done == ["r", "s"]


def test_answers_of_ended_workers_and_for_unknown_requests_are_ignored(watched: Watched) -> None:
    watched.answer("r", ">a")
    watched.begin("r", "a", "b")
    watched.forgetting.end_worker("a")
    watched.answer("r", ">a", "a>b", "b>a")
    assert watched.done == []
    watched.answer("r", ">b")
    assert watched.done == ["r"]


def test_workers_are_connected_by_the_edges_of_their_stages() -> None:
    workers = {"one": ["split", "shout"], "two": ["join"], "three": ["other"]}
    edges = [("gateway", "split"), ("split", "shout"), ("shout", "join"), ("join", "split"), ("join", "collector")]
    assert receivers_of(workers, edges) == {"one": {"two"}, "two": {"one"}, "three": set()}
