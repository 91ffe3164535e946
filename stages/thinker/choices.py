"""Handles requests for several choices. The choices of a request are the texts that the thinker generates for its
prompt.

For the engine, each choice is a separate request with its own id and seed.
"""

from __future__ import annotations

import hashlib

import msgspec

from stages.messages import Sampling

_MOST_SEED = 2**63 - 1


def engine_id(request_id: str, choice: int) -> str:
    """The engine's id for one choice. Choice 0 has the id of the request, which contains no ``#``.

    No id may be a prefix of another id, because SGLang aborts all requests whose ids begin with the given id.
    """
    return request_id if choice == 0 else f"{choice}#{request_id}"


def request_and_choice(engine_id: str) -> tuple[str, int]:
    """The id of the request, and the number of the choice, for which `engine_id` was made."""
    choice, _, request_id = engine_id.rpartition("#")
    return request_id, int(choice or 0)


def sampling_of(sampling: Sampling, choice: int) -> Sampling:
    """The sampling parameters for one choice. They equal those of the request, except the seed: if the request has a
    seed, each choice gets its own seed.

    Choice 0 has the request's seed, so it equals the answer to a request for a single choice. The seed of choice i is
    the first eight bytes of SHA-256 of ``choice:i:SEED`` (big-endian, with the sign bit cleared).
    """
    if choice == 0 or sampling.seed is None:
        return sampling
    digest = hashlib.sha256(f"choice:{choice}:{sampling.seed}".encode()).digest()
    return msgspec.structs.replace(sampling, seed=int.from_bytes(digest[:8], "big") & _MOST_SEED)
