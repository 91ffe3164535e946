"""A text that is tokenised in pieces has the same ids as a text that is tokenised at once. Tokenisation ends at the
token limit.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from msgspec import structs
from tokenizers import Tokenizer

from omni_pipeline.errors import OmniError
from stages.preprocessing import text_encoder
from stages.preprocessing.text_encoder import TextEncoder
from stages.preprocessing.token_limit import TextLimit, TokenLimit

PARTS = [
    "a", "Word", "é", "e\u0301", "\u0301", "ß", "Я", "окно", "日本", "ひら", "カナ", "각", "\u11a8", "1", "23",
    " ", "  ", "\t", "\n", "\r\n", "\n\n ", ",", ".", "...", "!?", "，", "。", "、", "'s", "'LL", "don't", "🎈",
    "<think>", "</think>", "<|im_end|>", "\N{KELVIN SIGN}", "\N{NO-BREAK SPACE}", "-", "\u0327", "\u3000", "\0",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(processor: Any) -> Tokenizer:
    tokenizer: Tokenizer = processor.tokenizer.backend_tokenizer
    return tokenizer


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    encoder = Tokenizer.from_str(tokenizer.to_str())
    encoder.encode_special_tokens = True
    ids: list[int] = encoder.encode(text, add_special_tokens=False).ids
    return ids


def encoder(tokenizer: Tokenizer, tokens: int) -> TextEncoder:
    return TextEncoder(tokenizer, TextLimit.of(TokenLimit(tokens), tokenizer))


def test_pieces_have_the_ids_of_the_whole(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[str] = []
    encode = TextEncoder._encode
    monkeypatch.setattr(TextEncoder, "_encode", lambda self, text: pieces.append(text) or encode(self, text))
    monkeypatch.setattr(text_encoder, "PIECE", 1)
    mine = encoder(tokenizer, 1_000_000)
    choose = random.Random(1)
    for _ in range(300):
        text = "".join(choose.choices(PARTS, k=60))
        assert mine.ids(text) == whole(tokenizer, text), text
    assert len(pieces) > 1500  # the texts were cut into pieces


def test_work_ends_at_the_limit(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    encode = TextEncoder._encode
    monkeypatch.setattr(TextEncoder, "_encode", lambda self, text: sizes.append(len(text)) or encode(self, text))
    with pytest.raises(OmniError, match="at least") as caught:
        encoder(tokenizer, 20_000).ids("xyz qrs, " * 100_000)
    assert caught.value.info.code == "context_length_exceeded"
    assert sum(sizes) < 200_000


@pytest.mark.parametrize("text", ["a" * 900_000, "\N{KELVIN SIGN}" * 300_000, "字" * 300_000, "ab" * 450_000])
def test_an_endless_word_is_refused_before_it_is_tokenised(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(TextEncoder, "_encode", lambda self, text: pytest.fail("was tokenised"))
    with pytest.raises(OmniError, match="at least"):
        encoder(tokenizer, 5_000).ids(text)


def test_the_least_number_of_tokens_is_never_too_large(tokenizer: Tokenizer) -> None:
    choose = random.Random(2)
    limit = TextLimit.of(TokenLimit(0), tokenizer)
    spellings = [tokenizer.decode([id_]) for id_ in tokenizer.get_vocab().values()]
    for _ in range(300):
        text = tokenizer.normalizer.normalize_str("".join(choose.choices(spellings + PARTS, k=choose.randrange(1, 80))))
        tokens = len(whole(tokenizer, text))
        structs.replace(limit, limit=TokenLimit(tokens)).check_least(0, text.encode())


def test_a_text_of_exactly_the_limit_is_taken(tokenizer: Tokenizer) -> None:
    text = "xyz qrs, " * 20_000
    tokens = len(whole(tokenizer, text))
    assert len(encoder(tokenizer, tokens).ids(text)) == tokens
    assert len(encoder(tokenizer, tokens + 7).ids(text, before=7)) == tokens
