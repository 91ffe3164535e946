"""A limit on the bytes of a text is computed from the limit on tokens. The limit on bytes refuses no text that is
within the limit on tokens.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import pytest
from tokenizers import Tokenizer

from omni_pipeline.errors import OmniError
from stages.messages import Text, Turn
from stages.preprocessing.token_limit import NFC_SHRINKS, TextLimit, TokenLimit


def turns(text: str) -> list[Turn]:
    return [Turn("", [Text(text)])]


@pytest.fixture(scope="module")
def tokenizer(processor: Any) -> Tokenizer:
    tokenizer: Tokenizer = processor.tokenizer.backend_tokenizer
    return tokenizer


def longest(tokenizer: Tokenizer) -> str:
    """The text of the longest token of the vocabulary."""
    return max((tokenizer.decode([id_]) for id_ in tokenizer.get_vocab().values()), key=lambda text: len(text.encode()))


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    "text",
    [
        "{longest}",
        "\N{KELVIN SIGN}",
        decomposed("각"),
        decomposed("ᾯ"),
        "\u1fbe\u0308\u0301",
        "🎈",
        "a",
    ],
)
def test_a_text_of_exactly_the_limit_is_taken(tokenizer: Tokenizer, text: str) -> None:
    text = text.format(longest=longest(tokenizer)) * 500
    tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
    limit = TextLimit.of(TokenLimit(tokens), tokenizer)
    assert limit.check(turns(text)) == len(text.encode())


def test_a_longer_text_is_refused(tokenizer: Tokenizer) -> None:
    limit = TextLimit.of(TokenLimit(10), tokenizer)
    assert limit.token_bytes is not None
    most = 10 * limit.token_bytes
    assert limit.check(turns("a" * most)) == most
    with pytest.raises(OmniError, match=r"maximum context length is 10 tokens.*at least 11 tokens"):
        limit.check(turns("a" * (most + 1)))
    assert limit.check(turns("é" * (most * NFC_SHRINKS // 2))) == most * NFC_SHRINKS
    with pytest.raises(OmniError, match="at least 11 tokens"):
        limit.check(turns("é" * (most * NFC_SHRINKS // 2 + 1)))


def test_normalisation_shortens_no_character_by_more_than_the_factor() -> None:
    """Normalisation replaces the parts of a decomposed character by this character. A text may contain, instead of a
    part, another character whose decomposition is only this part. So for each part, the test uses the longest such
    character.
    """
    # Only the first three planes of Unicode have characters with decompositions.
    every = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]
    parts_of = {one: parts for one in every if (parts := decomposed(one)) != one}
    size = {one: len(one.encode()) for one in {*parts_of, *"".join(parts_of.values())}}
    part_size = dict(size)
    for one, parts in parts_of.items():
        if len(parts) == 1:
            part_size[parts] = max(part_size[parts], size[one])
    # A character with several parts is never longer than the sum of its parts, so it is enough to check the parts.
    assert all(size[one] <= sum(part_size[part] for part in parts) for one, parts in parts_of.items())
    normal = [one for one in size if unicodedata.normalize("NFC", one) == one]
    shrinks = max(sum(part_size[part] for part in decomposed(one)) / size[one] for one in normal)
    assert NFC_SHRINKS - 1 < shrinks <= NFC_SHRINKS


@pytest.mark.parametrize("change", ["normalizer", "strips", "not bytes"])
def test_without_a_known_bound_no_text_is_refused(tokenizer: Tokenizer, change: str) -> None:
    parts = json.loads(tokenizer.to_str())
    if change == "normalizer":
        parts["normalizer"] = {"type": "Strip", "strip_left": True, "strip_right": True}
    elif change == "strips":
        parts["added_tokens"][0]["rstrip"] = True
    else:
        parts["pre_tokenizer"] = {"type": "Whitespace"}
    limit = TextLimit.of(TokenLimit(1), Tokenizer.from_str(json.dumps(parts)))
    assert limit.check(turns("a" * 100_000)) == 100_000
