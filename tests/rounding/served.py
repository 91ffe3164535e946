"""Gets answers from a server's API, with the log-probabilities of the tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.decode.detokenize import TokenTable
from tests.rounding.deviations import Answer
from tests.server import Server

BEST = 20
"""Maximum number of alternatives that the API reports."""


class Asker:
    """Asks a server for greedy answers.

    Args:
        tokenizer: Hugging Face's tokenizer. It gives the ids of tokens, because the API gives tokens only as bytes.
    """

    def __init__(self, server: Server, tokenizer: Any, max_tokens: int) -> None:
        self._server = server
        self._max_tokens = max_tokens
        self._ids = token_ids(tokenizer)

    def ask(self, body: dict[str, Any]) -> Answer:
        """The answer to a request with this content."""
        own = {"max_tokens": self._max_tokens, "return_token_ids": True, "skip_special_tokens": False}
        status, answer = self._server.post(body | own | {"logprobs": True, "top_logprobs": BEST})
        assert status == 200, answer
        [choice] = answer["choices"]
        return parse(choice, self._ids)


def token_ids(tokenizer: Any) -> dict[bytes, int]:
    """The id of each token, by the token's bytes. Tokens that share their bytes with another token are left out."""
    table = TokenTable.of(tokenizer)
    found: dict[bytes, list[int]] = {}
    for index in tokenizer.get_vocab().values():
        found.setdefault(table.bytes_of(index), []).append(index)
    return {piece: ids[0] for piece, ids in found.items() if piece and len(ids) == 1}


def parse(choice: Mapping[str, Any], ids: Mapping[bytes, int]) -> Answer:
    """Reads one choice of an answer. Raises AssertionError if the choice's tokens and log-probabilities disagree."""
    picked: list[int] = choice["token_ids"]
    best: list[dict[int, float]] = []
    for index, token in zip(picked, choice["logprobs"]["content"], strict=False):
        named = {ids[piece]: one["logprob"] for one in token["top_logprobs"] if (piece := bytes(one["bytes"])) in ids}
        own = ids.get(bytes(token["bytes"]))
        assert own in (None, index), f"token {index} is reported as {token['token']!r}"
        best.append(named)
    return Answer(picked, best)
