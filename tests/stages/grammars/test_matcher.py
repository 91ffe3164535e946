"""A mask allows exactly the tokens after which the grammar can still match the text. It allows the end token exactly if
the text is complete.
"""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import numpy
import pytest

from stages.grammars.masks import Masks
from stages.messages import Grammar
from tests.conftest import DEMO
from tests.regex_masks import RegexMasks

PATTERNS = [
    r"(yes|no)!{2,5}",
    r"[a-z]+(, [a-z]+)*\.",
    r'\{"n": -?(0|[1-9][0-9]{0,5}), "s": "[a-zA-Z ,]{3,40}"\}',
    r"(a|b)*abb",
    r"[0-9]{3}-[0-9]{4}|x{0,7}",
    r"<tool_call>[0-9]",
    r"<\|im_end\|>?",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_masks_are_those_of_every_token_tried(pen: Any, pattern: str) -> None:
    truth = RegexMasks(DEMO, pattern, pen.size, pen.end)
    for seed in range(6):
        rng = random.Random(seed)
        matcher, text = pen.matcher("regex", pattern), []
        for _ in range(12):
            allowed = pen.allowed(matcher, text)
            assert numpy.array_equal(allowed, truth.allowed(tuple(text)).numpy()), pen.tokenizer.decode(text)
            choices = [int(id_) for id_ in numpy.flatnonzero(allowed) if id_ != pen.end]
            if not choices:
                break
            text.append(rng.choice(choices))
        assert matcher.error is None


def test_special_tokens_and_padding_are_never_allowed(pen: Any) -> None:
    for kind, source in (("regex", r"(.|\n)*"), ("json_schema", "{}"), ("ebnf", r"start: /(.|\n)+/")):
        ids = numpy.flatnonzero(pen.allowed(pen.matcher(kind, source), []))
        assert not {*map(int, ids)} & ({*pen.tokenizer.added_tokens_decoder} - {pen.end})
        assert ids.max() < len(pen.tokenizer)


def test_a_text_that_must_stay_ends_only_where_nothing_else_is_allowed(pen: Any) -> None:
    matcher = pen.matcher("regex", "ab?")
    text = pen.tokenizer.encode("a")
    assert pen.allowed(matcher, text)[pen.end]
    assert not pen.allowed(matcher, text, stay=True)[pen.end]
    text += pen.tokenizer.encode("b")
    assert numpy.flatnonzero(pen.allowed(matcher, text, stay=True)).tolist() == [pen.end]


def test_texts_of_one_grammar_are_independent(pen: Any) -> None:
    one = pen.matcher("regex", "(ab)+")
    other = one.again()
    pen.allowed(one, pen.tokenizer.encode("a"))
    assert numpy.array_equal(pen.allowed(other, []), pen.allowed(pen.matcher("regex", "(ab)+"), []))


@pytest.mark.parametrize(
    ("kind", "source", "text", "written", "may_end"),
    [
        ("json_schema", {"type": "object"}, '{"a": [1, null]}', '{"a": [1, null]}', True),
        ("json_schema", {}, "[1,2]", "[1,2]", True),
        ("json_schema", True, "[1,2]", "[1,2]", True),
        ("json_schema", {"const": None}, "null", "null", True),
        ("json_schema", {"const": "<|im_end|>"}, '"<|im', '"<|im', False),
        ("json_schema", {"enum": ["red", "green"]}, '"blue"', '"', False),
        ("json_schema", {"type": "object", "x-guidance": {"whitespace_flexible": False}}, '{ "', '{ "', False),
        ("ebnf", 'root ::= ("yes" | "no") "!"*', "no!!?", "no!!", True),
        ("ebnf", 'start: ("yes" | "no") "!"*', "no!!?", "no!!", True),
        ("ebnf", 'root ::= "(" root ")" | [a-c]', "((b))", "((b))", True),
        ("regex", "a/b\\.\n\"'", "a/b.\n\"'", "a/b.\n\"'", True),
    ],
)
def test_grammars(write: Any, kind: str, source: Any, text: str, written: str, may_end: bool) -> None:
    assert write(kind, source, text) == (written, may_end)


def test_white_space_in_json_is_bounded(pen: Any) -> None:
    space, line = pen.tokenizer.encode(" "), pen.tokenizer.encode("\n")
    start = pen.tokenizer.encode("{")
    assert pen.write("json_schema", {"type": "object"}, start + space * 5)[0] == "{ "
    assert len(pen.write("json_schema", {"type": "object"}, start + line + space * 100)[0]) == 2 + 64


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("json_schema", "{", "not JSON"),
        ("json_schema", "[]", "object"),
        ("json_schema", "false", "object"),
        ("json_schema", "[" * 50_000, "deep"),
        ("json_schema", {"type": "poem"}, "poem"),
        ("json_schema", {"not": {}}, "not"),
        ("json_schema", {"$ref": "#/nowhere"}, "nowhere"),
        ("json_schema", {"type": "integer", "minimum": 5, "maximum": 3}, ""),
        ("regex", "(", ""),
        ("regex", "(?=a)b", ""),
        ("regex", "(a)\\1", ""),
        ("ebnf", "", "start"),
        ("ebnf", "hello", ""),
        ("ebnf", 'root ::= "a" (', "not EBNF"),
        ("ebnf", "root ::= other", "other"),
        ("ebnf", "root ::= " + "(" * 5000, "deep"),
        ("ebnf", '%llguidance {}\nstart: "a"', "not allowed"),
    ],
)
def test_invalid_grammars_are_refused(pen: Any, kind: str, source: Any, reason: str) -> None:
    message = pen.refusal(kind, source)
    assert reason in message
    assert "no_forcing" not in message
    assert len(message) < 400


def test_what_cannot_be_enforced_is_ignored_on_request(pen: Any) -> None:
    schema = json.dumps({"type": "integer", "not": {"const": 3}})
    matcher = pen.grammars.compile(Grammar("json_schema", schema, lenient=True))
    assert pen.allowed(matcher, [])[pen.tokenizer.encode("3")[0]]
    assert "not" in pen.refusal("json_schema", schema)


def test_an_ambiguous_grammar_ends_in_an_error_in_time(pen: Any) -> None:
    matcher, text = pen.matcher("ebnf", 'start: s+\ns: s s s | s s | "a" | "b"'), []
    a = pen.tokenizer.encode("a")[0]
    while matcher.error is None:
        assert pen.allowed(matcher, text, stay=True)[a]
        text.append(a)
    assert (matcher.error.info.status, matcher.error.info.code) == (400, "grammar_too_complex")
    assert pen.allowed(matcher, text).all()


@pytest.mark.parametrize("seed", range(20))
def test_random_texts_conform_to_their_schema(pen: Any, seed: int) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 3},
            "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    rng, text = random.Random(seed), []
    matcher = pen.matcher("json_schema", schema)
    while not (allowed := pen.allowed(matcher, text))[pen.end]:
        text.append(rng.choice([int(id_) for id_ in numpy.flatnonzero(allowed)]))
    jsonschema.validate(json.loads(pen.tokenizer.decode(text)), schema)


def test_lists_of_masks_are_shared_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.grammars.masks._CACHED_IDS", 16)
    cache = Masks(size=70, end=69)
    assert numpy.flatnonzero(numpy.frombuffer(cache.everything, numpy.uint8)).size == 12  # three words
    packed = [numpy.packbits(numpy.arange(96) // 8 == index, bitorder="little").tobytes() for index in range(4)]
    lists = [cache.listed(each, stay=False) for each in packed]
    assert [mask.ids.tolist() for mask in lists] == [[*range(8 * index, 8 * index + 8)] for index in range(4)]
    assert cache.listed(packed[3], stay=False) is lists[3]
    assert cache.listed(packed[2], stay=False) is lists[2]
    assert cache.listed(packed[0], stay=False) is not lists[0]
