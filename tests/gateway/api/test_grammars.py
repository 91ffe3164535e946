"""Whichever field of a request contains the grammar, the thinker gets this grammar. Errors name the wrong field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.api.grammars import MOST_BYTES, grammar_of
from gateway.api.validation import parse
from gateway.bodies.json_body import JsonBody, LongString
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import ErrorInfo, OmniError
from stages.messages import Grammar
from tests.gateway import json_bodies

MESSAGES = [{"role": "user", "content": "x"}]
SCHEMA = {"type": "object", "properties": {"b": {"const": None}, "a": {"enum": [1.0, None]}}, "required": ["b"]}
TAGS = {"structures": [{"begin": "<a>", "schema": {"default": None}, "end": "</a>"}], "triggers": ["<a>"]}
CHOICE = {
    "format": {
        "type": "or",
        "elements": [{"type": "const_string", "value": "yes"}, {"type": "const_string", "value": "no"}],
    }
}


def found(**fields: Any) -> Grammar | None:
    return grammar_of(json_bodies.parse(json.dumps({"messages": MESSAGES, **fields}).encode()))


def refused(**fields: Any) -> ErrorInfo:
    with pytest.raises(OmniError) as caught:
        found(**fields)
    return caught.value.info


def named(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


@pytest.mark.parametrize(
    ("fields", "kind", "source", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", {"type": "object"}, "response_format"),
        ({"response_format": named(SCHEMA)}, "json_schema", SCHEMA, "response_format.json_schema.schema"),
        ({"response_format": named(SCHEMA, strict=True)}, "json_schema", SCHEMA, "response_format.json_schema.schema"),
        ({"response_format": named(None)}, "json_schema", {}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "structural_tag", **TAGS}}, "structural_tag", TAGS, "response_format"),
        ({"response_format": {"type": "structural_tag", **CHOICE}}, "structural_tag", CHOICE, "response_format"),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", SCHEMA, "structured_outputs.json"),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "json_schema", SCHEMA, "structured_outputs.json"),
        (
            {"structured_outputs": {"json_object": True}},
            "json_schema",
            {"type": "object"},
            "structured_outputs.json_object",
        ),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+", "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "structural_tag", CHOICE, "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, "ebnf", 'root ::= "a"', "structured_outputs.grammar"),
        (
            {"structured_outputs": {"structural_tag": json.dumps(TAGS)}},
            "structural_tag",
            TAGS,
            "structured_outputs.structural_tag",
        ),
        ({"guided_json": SCHEMA}, "json_schema", SCHEMA, "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, "json_schema", SCHEMA, "guided_json"),
        ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
        ({"guided_choice": ["yes", "no"]}, "structural_tag", CHOICE, "guided_choice"),
        ({"guided_grammar": 'root ::= "a"'}, "ebnf", 'root ::= "a"', "guided_grammar"),
        ({"json_schema": json.dumps(SCHEMA)}, "json_schema", SCHEMA, "json_schema"),
        ({"regex": "a+"}, "regex", "a+", "regex"),
        ({"ebnf": 'root ::= "a"'}, "ebnf", 'root ::= "a"', "ebnf"),
        ({"structural_tag": json.dumps(TAGS)}, "structural_tag", TAGS, "structural_tag"),
    ],
)
def test_each_form_gives_a_grammar(fields: dict[str, Any], kind: str, source: Any, param: str) -> None:
    grammar = found(**fields)
    assert grammar is not None
    assert (grammar.kind, grammar.param, grammar.lenient) == (kind, param, False)
    if isinstance(source, str):
        assert grammar.source == source
    else:
        assert json.dumps(json.loads(grammar.source)) == json.dumps(source)  # the order of the properties counts too


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"response_format": None},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False, "regex": None}},
    ],
)
def test_any_text_needs_no_grammar(fields: dict[str, Any]) -> None:
    assert found(**fields) is None


def test_a_schema_that_is_not_strict_is_enforced_as_far_as_possible() -> None:
    grammar = found(response_format=named(SCHEMA, strict=False))
    assert grammar is not None
    assert grammar.lenient


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
        ({"guided_json": {}, "ebnf": 'root ::= "a"'}, "ebnf"),
        ({"guided_regex": "a", "regex": "a"}, "regex"),
    ],
)
def test_several_grammars_are_refused(fields: dict[str, Any], param: str) -> None:
    info = refused(**fields)
    assert (info.status, info.param, info.code) == (400, param, "invalid_value")
    assert "send only one" in info.message


def test_a_large_grammar_is_refused() -> None:
    assert found(regex="a" * MOST_BYTES) is not None
    info = refused(regex="a" * (MOST_BYTES + 1))
    assert (info.status, info.param, info.code) == (400, "regex", "grammar_too_large")


@pytest.mark.parametrize("place", ["name", "value"])
def test_a_long_text_in_a_schema_is_text(place: str) -> None:
    long = b"y" * 9000
    schema = b'{"enum": ["MARK"]}' if place == "value" else b'{"properties": {"MARK": {}}}'
    outline = b'{"messages": [{"role": "user", "content": "x"}], "guided_json": ' + schema + b"}"
    body = JsonBody(outline, {"MARK": LongString(outline.index(b"MARK"), bytearray(long), False)})
    grammar = grammar_of(parse(body, Limits()))
    assert grammar is not None
    assert grammar.source.encode() == schema.replace(b"MARK", long).replace(b" ", b"")
