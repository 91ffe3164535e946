"""A structural tag leaves text free until a trigger begins a tag. Then the text must follow the tag."""

from __future__ import annotations

from typing import Any

import pytest

from stages.grammars.structural_tag import DEPTH

CALL = {
    "begin": '<tool_call>\n{"name": "turn", "arguments": ',
    "schema": {
        "type": "object",
        "properties": {"by": {"type": "integer"}},
        "required": ["by"],
        "additionalProperties": False,
    },
    "end": "}\n</tool_call>",
}
OTHER = {"begin": '<tool_call>\n{"name": "stop", "arguments": ', "schema": None, "end": "}\n</tool_call>"}
TURN = '<tool_call>\n{"name": "turn", "arguments": {"by": 3}}\n</tool_call>'
STOP = '<tool_call>\n{"name": "stop", "arguments": [null]}\n</tool_call>'


def calls(**more: Any) -> dict[str, Any]:
    return {"type": "structural_tag", "structures": [CALL, OTHER], "triggers": ["<tool_call>"], **more}


@pytest.mark.parametrize("text", ["", "Hello.", TURN, f"Hi {TURN}{STOP}\n{TURN} bye"])
def test_text_and_tags_alternate(write: Any, text: str) -> None:
    assert write("structural_tag", calls(), text) == (text, True)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (TURN.replace("turn", "fly"), '<tool_call>\n{"name": "'),
        (TURN.replace("by", "to"), '<tool_call>\n{"name": "turn", "arguments": {"'),
        ("Hi <tool_call>now", "Hi <tool_call>"),
    ],
)
def test_text_in_a_tag_follows_its_schema(write: Any, text: str, written: str) -> None:
    assert write("structural_tag", calls(), text) == (written, False)


def test_first_text_can_be_forbidden(write: Any) -> None:
    assert write("structural_tag", calls(at_least_one=True), f"Hi {TURN}") == ("", False)
    assert write("structural_tag", calls(at_least_one=True), f"{STOP} bye") == (f"{STOP} bye", True)


def test_trigger_cannot_be_spelled_with_other_tokens(pen: Any) -> None:
    spelled = [id_ for piece in ("<", "tool", "_", "call", ">") for id_ in pen.tokenizer.encode(piece)]
    written, may_end = pen.write("structural_tag", calls(), spelled)
    assert (written, may_end) == ("<tool_call", True)


def test_trigger_may_be_text(write: Any) -> None:
    tag = {"structures": [{"begin": "<fn=a>", "schema": {"type": "integer"}, "end": "</fn>"}], "triggers": ["<fn="]}
    assert write("structural_tag", tag, "go <fn=a>12</fn> <f") == ("go <fn=a>12</fn> <f", True)
    assert write("structural_tag", tag, "go <fn=b>")[0] == "go <fn="


FORMATS: list[tuple[Any, str, str, bool]] = [
    ({"type": "const_string", "value": "yes"}, "yes!", "yes", True),
    ({"type": "const_string", "value": "<|im_end|>"}, "<", "<", False),
    ({"type": "any_text"}, "What?", "What?", True),
    ({"type": "any_text", "excludes": ["x"]}, "a x", "a", True),
    ({"type": "regex", "pattern": "a*b?"}, "aabb", "aab", True),
    ({"type": "regex", "pattern": "a*"}, "", "", True),
    ({"type": "json_schema", "json_schema": {"type": "integer"}}, "12x", "12", True),
    ({"type": "json_schema", "json_schema": True}, "[1]", "[1]", True),
    ({"type": "sequence", "elements": []}, "a", "", True),
    ({"type": "optional", "content": {"type": "const_string", "value": "a"}}, "aa", "a", True),
    ({"type": "plus", "content": {"type": "const_string", "value": "a"}}, "", "", False),
    ({"type": "star", "content": {"type": "const_string", "value": "a"}}, "aaa", "aaa", True),
    ({"type": "repeat", "min": 1, "max": 2, "content": {"type": "const_string", "value": "a"}}, "aaa", "aa", True),
    ({"type": "repeat", "min": 2, "max": -1, "content": {"type": "const_string", "value": "a"}}, "aaa", "aaa", True),
    (
        {
            "type": "sequence",
            "elements": [
                {"type": "tag", "begin": "<think>\n", "content": {"type": "any_text"}, "end": "</think>"},
                {"type": "or", "elements": [{"type": "const_string", "value": v} for v in ("yes", "no")]},
            ],
        },
        "<think>\na b</think>yes",
        "<think>\na b</think>yes",
        True,
    ),
    (
        {
            "type": "tags_with_separator",
            "tags": [{"type": "tag", "begin": "[", "content": {"type": "any_text"}, "end": ["]", ")"]}],
            "separator": ",",
        },
        "[a],[b),c",
        "[a],[b),",
        False,
    ),
    (
        {
            "type": "triggered_tags",
            "triggers": ["(("],
            "tags": [{"type": "tag", "begin": "((", "content": {"type": "any_text"}, "end": "))"}],
            "stop_after_first": True,
        },
        "x ((a)) y",
        "x ((a))",
        True,
    ),
]
RESPONSE = {
    "type": "tag",
    "begin": "<r>",
    "content": {
        "type": "triggered_tags",
        "triggers": ["<fn", "<tool_call>"],
        "tags": [
            {"type": "tag", "begin": "<fn>", "content": {"type": "any_text", "excludes": ["!"]}, "end": "</fn>"},
            {"type": "tag", "begin": "<tool_call>", "content": {"type": "any_text"}, "end": "</tool_call>"},
        ],
    },
    "end": ["</r>", "<end>"],
}


@pytest.mark.parametrize(
    ("text", "written", "may_end"),
    [
        ("<r></r>", "<r></r>", True),
        ("<r>a <f </re</r>x", "<r>a <f </re</r>", True),
        (
            "<r>a<fn>b < </f</fn>c<tool_call>d</tool_call></fn></r>",
            "<r>a<fn>b < </f</fn>c<tool_call>d</tool_call></fn></r>",
            True,
        ),
        ("<r><fn>b!", "<r><fn>b", False),
        ("<r>x<end>", "<r>x<end>", True),
        ("<r>x<fnx", "<r>x<fn", False),
    ],
)
def test_free_text_ends_where_its_end_is_complete(write: Any, text: str, written: str, may_end: bool) -> None:
    assert write("structural_tag", {"format": RESPONSE}, text) == (written, may_end)


@pytest.mark.parametrize(("form", "text", "written", "may_end"), FORMATS)
def test_formats(write: Any, form: Any, text: str, written: str, may_end: bool) -> None:
    assert write("structural_tag", {"type": "structural_tag", "format": form}, text) == (written, may_end)


def nested(depth: int) -> Any:
    form: Any = {"type": "const_string", "value": "a"}
    for _ in range(depth):
        form = {"type": "optional", "content": form}
    return {"format": form}


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("[", "not a structural tag"),
        ({"format": {"type": "poem"}}, "poem"),
        ({"structures": [CALL], "triggers": ["<fn"]}, "none of the 'triggers'"),
        ({"structures": [], "triggers": []}, "a list of tags is empty"),
        ({"structures": [{**CALL, "schema": False}], "triggers": ["<"]}, "allows no value"),
        ({"format": {"type": "or", "elements": []}}, "empty"),
        ({"format": {"type": "star", "content": {"type": "any_text"}}}, "last format"),
        ({"format": {"type": "sequence", "elements": [{"type": "any_text"}] * 2}}, "last format"),
        ({"format": {"type": "repeat", "min": 3, "max": 2, "content": {"type": "any_text"}}}, "repeat"),
        (nested(DEPTH + 1), "nested"),
        ("[" * 100_000, "not a structural tag"),
    ],
)
def test_invalid_tags_are_refused(pen: Any, tag: Any, reason: str) -> None:
    assert reason in pen.refusal("structural_tag", tag)
