"""The text that grows token by token equals the result of the tokenizer's own `decode`, and stop strings are never
shown.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from stages.decode.detokenize import TokenTable, Transcript
from stages.messages import IdLogprob, TokenLogprob


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def table(tokenizer: Any) -> TokenTable:
    return TokenTable.of(tokenizer)


def run(transcript: Transcript, ids: list[int]) -> list[str]:
    """The text that the transcript shows at each step."""
    shown = []
    for token in ids:
        transcript.push(token)
        shown.append(transcript.take()[0])
        if transcript.stopped:
            break
    transcript.finish()
    return [*shown, transcript.take()[0]]


@pytest.mark.parametrize("skip_special", [True, False])
def test_random_ids_give_the_text_of_the_tokenizer(tokenizer: Any, table: TokenTable, skip_special: bool) -> None:
    rng = random.Random(5)
    for _ in range(500):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(1, 60))]
        shown = "".join(run(Transcript(table, skip_special=skip_special), ids))
        assert shown == tokenizer.decode(ids, skip_special_tokens=skip_special)


def test_a_character_of_several_tokens_is_shown_whole(tokenizer: Any, table: TokenTable) -> None:
    ids = tokenizer.encode("日本🎈", add_special_tokens=False)
    assert len(ids) > 3
    shown = run(Transcript(table), ids)
    assert "".join(shown) == "日本🎈"
    assert not any("\ufffd" in piece for piece in shown)


def test_what_is_certain_ends_before_whatever_a_stop_string_may_begin_with(tokenizer: Any, table: TokenTable) -> None:
    whole, stop = "one, two 日本, three, four", "two 日本, three"
    ids = tokenizer.encode(whole, add_special_tokens=False)
    texts = [tokenizer.decode(ids[: count + 1]) for count in range(len(ids))]
    outside = sum(len(text) <= whole.index(stop) for text in texts)
    transcript = Transcript(table, stop=[stop])
    certain: list[tuple[int, int]] = []
    for count, (token, text) in enumerate(zip(ids, texts, strict=True), 1):
        transcript.push(token)
        transcript.take()
        if transcript.stopped:
            break
        certain += transcript.certain()
        if "\ufffd" not in text and not any(text.endswith(stop[:length]) for length in range(1, len(stop))):
            assert len(certain) == count
        assert len(certain) <= outside
    assert transcript.stopped
    certain += transcript.certain()
    assert len(certain) == outside
    assert [end for _, end in certain] == [len(text) for text in texts[:outside]]
    assert [start for start, _ in certain] == [0, *(end for _, end in certain[:-1])]


def test_without_a_stop_string_all_is_certain_but_the_first_bytes_of_a_character(
    tokenizer: Any, table: TokenTable
) -> None:
    ids = tokenizer.encode("a🎈", add_special_tokens=False)
    transcript = Transcript(table)
    certain = []
    for token in ids:
        transcript.push(token)
        certain.append(transcript.certain())
    assert certain == [[(0, 1)]] + [[]] * (len(ids) - 2) + [[(1, 2)] * (len(ids) - 1)]


def test_at_the_end_all_is_certain(tokenizer: Any, table: TokenTable) -> None:
    ids = tokenizer.encode("one two", add_special_tokens=False)
    transcript = Transcript(table, stop=["two three"])
    for token in ids:
        transcript.push(token)
    certain = transcript.certain()
    assert len(certain) < len(ids)
    transcript.finish()
    assert len(certain + transcript.certain()) == len(ids)


def test_an_unfinished_character_is_replaced_at_the_end(tokenizer: Any, table: TokenTable) -> None:
    ids = tokenizer.encode("a🎈", add_special_tokens=False)[:-1]
    assert "".join(run(Transcript(table), ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("one two three", ["e t"], "on"),
        ("one two three", ["threesome"], "one two three"),
        ("one two three", ["x", ""], "one two three"),
        ("abab abac", ["abac"], "abab "),
        ("日本語です", ["語"], "日本"),
        ("stop", ["stop"], ""),
        ("a\n\nb", ["\n\n"], "a"),
    ],
)
def test_text_ends_before_a_stop_string(
    tokenizer: Any, table: TokenTable, text: str, stop: list[str], expected: str
) -> None:
    transcript = Transcript(table, stop=stop)
    shown = run(transcript, tokenizer.encode(text, add_special_tokens=False))
    assert "".join(shown) == expected
    assert transcript.stopped == (expected != text)


def test_any_stop_strings_in_any_text_are_found_as_by_comparing_everything() -> None:
    """The texts have only two different letters, so stop strings overlap with themselves and with each other."""
    rng = random.Random(3)
    pieces = [b"a", b"b", b"ab", b"aab", b"bb"]
    for _ in range(500):
        stop = ["".join(rng.choices("ab", k=rng.randrange(2, 7))) for _ in range(rng.randrange(1, 4))]
        transcript = Transcript(TokenTable(pieces, frozenset()), stop=stop)
        text = shown = ""
        for token in rng.choices(range(len(pieces)), k=12):
            transcript.push(token)
            text += pieces[token].decode()
            shown += transcript.take()[0]
            found = [text.index(each) for each in stop if each in text]
            assert transcript.stopped == bool(found)
            if found:
                assert shown == text[: min(found)]
                break
            begun = (each[:length] for each in stop for length in range(1, len(each)))
            assert shown == text[: len(text) - max(len(part) if text.endswith(part) else 0 for part in begun)]


def test_long_stop_strings_cost_a_bounded_number_of_steps_for_each_character() -> None:
    """At each token, a simple search would compare the whole answer with every beginning of every stop string."""
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    tokens, strings = 2000, 16
    stop = ["a" * (1000 + number) for number in range(strings)]
    transcript = Transcript(TokenTable([b"a", b"b"], frozenset()), stop=stop)
    sys.setprofile(count)
    try:
        for number in range(tokens):
            transcript.push(number % 2)
            transcript.certain()
    finally:
        sys.setprofile(None)
    transcript.finish()
    assert transcript.take()[0] == "ab" * (tokens // 2)
    assert steps < tokens * strings * 20


def test_what_could_begin_a_stop_string_is_held_back(tokenizer: Any, table: TokenTable) -> None:
    transcript = Transcript(table, stop=["XYZ"])
    for token in tokenizer.encode("abX", add_special_tokens=False):
        transcript.push(token)
    assert transcript.take()[0] == "ab"
    for token in tokenizer.encode("c", add_special_tokens=False):
        transcript.push(token)
    assert transcript.take()[0] == "Xc"


def test_logprobs_come_with_their_text_and_end_at_the_stop_string(tokenizer: Any, table: TokenTable) -> None:
    ids = tokenizer.encode("one two three", add_special_tokens=False)
    transcript = Transcript(table, stop=[" two"])
    seen: list[str] = []
    for token in ids:
        transcript.push(token, TokenLogprob(chosen=table.shown(IdLogprob(token, -0.5)), top=[]))
        seen += [entry.chosen.token for entry in transcript.take()[1]]
        if transcript.stopped:
            break
    assert "".join(seen) == "one"
