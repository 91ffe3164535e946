"""Computes which replica of a group is best for a request, from the load of each replica and from the part of the
prompt that each replica has in its prefix cache.

A single score decides: the number of tokens that must be computed before the new request's first token, if the replica
gets the request. There are no thresholds for the length of a prefix. So a long prefix outweighs some load, and a short
prefix does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from msgspec import Struct

OPEN_TOKENS = 128
"""The load of one open request, in prompt tokens. If the prompt of the request still waits, its tokens are added to
this load. While the answer is generated, each step for the answer delays the prompts of other requests.
"""


class Reason(Enum):
    """Why a replica was chosen."""

    PREFIX = "prefix"  # its cache contains more of the prompt than the cache of at least one other replica
    LOAD = "load"  # no replica has a lower load; replicas with the same load take turns
    ONLY = "only"  # no other replica could take the request


class Candidate(Struct, frozen=True):
    """A replica that can take a request.

    Attributes:
        load: Number of prompt tokens that wait at the replica, plus `OPEN_TOKENS` for each of its open requests. In a
            group without a prefix cache, the load is the number of open requests.
        cached: Tokens of the new request's prompt that the replica probably has in its prefix cache.
    """

    replica: int
    load: int
    cached: int = 0


class Choice(Struct, frozen=True):
    """The replica of a request.

    Attributes:
        cached: Tokens of the prompt that the replica probably has in its prefix cache.
    """

    replica: int
    cached: int
    reason: Reason


def choose(candidates: Sequence[Candidate], prompt_tokens: int, overload: float, latest: int) -> Choice:
    """Choose the replica with the lowest score. The score of a replica is the sum of two numbers: the load of the
    replica, and the number of prompt tokens that the replica must compute for the new request.

    The cache of an overloaded replica does not count. A replica is overloaded if its load is more than `overload` times
    the mean load. The mean includes the new request, because otherwise a single short answer would make a replica
    overloaded while the other replicas are idle.

    Args:
        candidates: At least one replica.
        prompt_tokens: Number of tokens of the prompt; 0 if it is unknown.
        overload: See `config.schema.Routing`.
        latest: The replica that was chosen last. If several replicas have the same score, they take turns.
    """
    if len(candidates) == 1:
        return Choice(candidates[0].replica, candidates[0].cached, Reason.ONLY)
    mean = (sum(each.load for each in candidates) + prompt_tokens + OPEN_TOKENS) / len(candidates)
    counted = {each.replica: each.cached if each.load <= overload * mean else 0 for each in candidates}

    def score(each: Candidate) -> tuple[int, bool, int]:
        return each.load + prompt_tokens - counted[each.replica], each.replica <= latest, each.replica

    best = min(candidates, key=score)
    longer = counted[best.replica] > min(counted.values())
    return Choice(best.replica, best.cached, Reason.PREFIX if longer else Reason.LOAD)
