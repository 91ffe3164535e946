"""A worker sends each message to the replica that the message's request uses, and forgets the replicas of requests that
have ended.
"""

from __future__ import annotations

import pytest

from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.wire.messages import Abort, Start
from omni_pipeline.worker.routing import Routing

HOME = "ipc://home"
ADDRESSES = {
    "entry": {0: "ipc://entry"},
    "talk": {0: "ipc://talk@0", 1: "ipc://talk@1"},
    "predict": {0: "ipc://predict@0", 1: "ipc://predict@1"},
    "sound": {0: "ipc://sound@0", 1: "ipc://sound@1", 2: "ipc://sound@2"},
}
GROUPS = {"talk": "voice", "predict": "voice", "sound": "vocoder"}


@pytest.fixture
def entry() -> Routing:
    """The routing of the worker of `entry`, which is in no group."""
    return Routing(ADDRESSES, HOME, GROUPS)


@pytest.fixture
def talker() -> Routing:
    """The routing of a worker of replica 1 of the group `voice`."""
    return Routing(ADDRESSES, HOME, GROUPS, "voice", 1)


def start(request_id: str, **bound: int) -> Start[None]:
    return Start(request_id, "before", "entry", None, bound)


def test_each_request_goes_to_its_own_replica(entry: Routing) -> None:
    entry.learn(start("r", voice=0, vocoder=2))
    entry.learn(start("s", voice=1, vocoder=0))
    assert entry.address("talk", "r") == "ipc://talk@0"
    assert entry.address("talk", "s") == "ipc://talk@1"
    assert entry.address("sound", "r") == "ipc://sound@2"
    assert entry.address("entry", "r") == "ipc://entry"
    assert entry.address(COLLECTOR, "r") == HOME


def test_a_stage_of_the_same_group_is_in_the_same_replica_without_being_told(talker: Routing) -> None:
    assert talker.address("predict", "r") == "ipc://predict@1"


def test_a_request_that_uses_no_replica_of_a_stage_cannot_be_sent_there(entry: Routing) -> None:
    entry.learn(start("r", voice=0))
    with pytest.raises(LookupError):
        entry.address("sound", "r")


def test_advice_goes_to_all_replicas_of_another_group_and_to_its_own_replica_within_the_group(
    entry: Routing, talker: Routing
) -> None:
    assert list(entry.all_addresses("talk")) == ["ipc://talk@0", "ipc://talk@1"]
    assert list(talker.all_addresses("predict")) == ["ipc://predict@1"]
    assert len(talker.all_addresses("sound")) == 3


def test_an_abort_names_the_replicas_even_if_the_request_has_not_come_yet(entry: Routing) -> None:
    assert entry.receivers(["talk", "sound"], Abort("r", bound={"voice": 1})) == {"ipc://talk@1"}
    assert len(entry.receivers(["talk", "sound"], Abort("r"))) == 5


def test_only_requests_of_a_replica_use_it(entry: Routing, talker: Routing) -> None:
    entry.learn(start("r", voice=0))
    assert entry.uses("r", "talk", 0)
    assert not entry.uses("r", "talk", 1)
    assert not talker.uses("r", "predict", 0)


def test_a_moved_replica_leaves_the_others_where_they_are(entry: Routing) -> None:
    entry.learn(start("r", voice=1))
    assert entry.move(["talk"], 1, "ipc://talk@1.1") == {"ipc://talk@1"}
    assert entry.address("talk", "r") == "ipc://talk@1.1"
    assert list(entry.all_addresses("talk")) == ["ipc://talk@0", "ipc://talk@1.1"]


def test_replicas_are_kept_only_for_the_requests_that_are_held(entry: Routing) -> None:
    for number in range(100):
        entry.learn(start(f"r{number}", voice=0))
    entry.keep({"r7", "r8"})
    assert len(entry) == 2
    entry.forget("r7")
    assert len(entry) == 1
    entry.learn(Start("plain", "before", "entry", None))
    assert len(entry) == 1
