"""A host's secret key is never printed by accident."""

from __future__ import annotations

import msgspec
import zmq

from omni_pipeline.wire.keys import KeyPair, new_key_pair
from omni_pipeline.wire.network import HostLink


def test_public_key_belongs_to_the_secret_key() -> None:
    keys = new_key_pair()
    assert zmq.curve_public(keys.secret.encode()).decode() == keys.public


def test_each_pair_is_new() -> None:
    assert new_key_pair() != new_key_pair()


def test_secret_is_not_shown() -> None:
    keys = new_key_pair()
    link = HostLink("b", keys, "10.0.0.2", (0, 0), {}, 5.0)
    for text in (repr(keys), str(keys), f"{keys}", repr(link), str(keys.__rich_repr__())):
        assert keys.secret not in text
        assert keys.public in text


def test_link_travels_in_an_assignment() -> None:
    link = HostLink("b", new_key_pair(), "10.0.0.2", (20000, 20199), {"main": new_key_pair().public}, 5.0)
    back = msgspec.msgpack.decode(msgspec.msgpack.encode(link), type=HostLink)
    assert back == link
    assert isinstance(back.keys, KeyPair)
