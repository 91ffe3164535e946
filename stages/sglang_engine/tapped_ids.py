"""Gives each tapped state an id. When a stage receives the same state again, it recognises the state by this id.

A state depends on its token and on all tokens before it. So neither the token nor a media item identifies the state. A
hash of the state's bytes would identify the state, but computing the hash takes 3 to 6 µs for each row of the 30B
model. Instead, each state gets a new number when the state is computed. A state that comes from the prefix cache keeps
its number.
"""

from __future__ import annotations

import secrets

import torch

FIRST_TAPPED_ID = 2**62


class TappedIds:
    """The ids of all states in the KV cache. Two states with the same id are the same state, and are equal bit by bit.

    Ids are numbers in [2**62, 2**63). They begin at a random number, because several processes may send states to the
    same receiver.

    Args:
        tokens: Number of tokens in the KV cache.
    """

    def __init__(self, tokens: int) -> None:
        # The ids are on the CPU, because they are only sent. So the memory plan of a GPU does not have to include them.
        self._ids = torch.zeros(tokens, dtype=torch.int64)
        self._next = FIRST_TAPPED_ID + secrets.randbits(61)

    def renew(self, places: torch.Tensor) -> None:
        """Give new ids to the states at these indices of the KV cache (int64 [t]), because they have been computed."""
        self._ids[places.cpu()] = torch.arange(self._next, self._next + len(places))
        self._next += len(places)

    def of(self, places: torch.Tensor) -> torch.Tensor:
        """The ids of the states at these indices of the KV cache: int64 [k] to int64 [k]."""
        return self._ids[places.cpu()]
