"""Finds the grammar that the text must follow. Clients send the grammar in fields of OpenAI, vLLM or SGLang."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.api import schema
from gateway.api.schema import ChatCompletionRequest
from omni_pipeline.errors import bad_request
from stages.messages import Grammar

# Maximum size of a grammar in bytes. The time and the memory for its compilation are limited elsewhere.
MOST_BYTES = 1 << 16

_OBJECT = {"type": "object"}


def grammar_of(request: ChatCompletionRequest) -> Grammar | None:
    """The grammar of the answer's text, or None.

    Raises:
        OmniError: 400, if there are several grammars, or if the grammar is too large.
    """
    found = list(_grammars(request))
    if not found:
        return None
    if len(found) > 1:
        first, second = found[0].param, found[1].param
        raise bad_request(
            f"Invalid '{second}': '{first}' contains a grammar too; send only one of these two fields.",
            param=second,
            code="invalid_value",
        )
    [grammar] = found
    if len(grammar.source.encode()) > MOST_BYTES:
        raise bad_request(
            f"Invalid '{grammar.param}': it has more than {MOST_BYTES} bytes.",
            param=grammar.param,
            code="grammar_too_large",
        )
    return grammar


def _grammars(request: ChatCompletionRequest) -> Iterator[Grammar]:
    yield from _of_response_format(request.response_format)
    yield from _of_structured_outputs(request.structured_outputs)
    if request.guided_json is not None:
        yield _json_schema(request.guided_json, "guided_json")
    if request.guided_regex is not None:
        yield Grammar("regex", request.guided_regex, "guided_regex")
    if request.guided_choice is not None:
        yield _choice(request.guided_choice, "guided_choice")
    if request.guided_grammar is not None:
        yield Grammar("ebnf", request.guided_grammar, "guided_grammar")
    if request.json_schema is not None:
        yield Grammar("json_schema", request.json_schema, "json_schema")
    if request.regex is not None:
        yield Grammar("regex", request.regex, "regex")
    if request.ebnf is not None:
        yield Grammar("ebnf", request.ebnf, "ebnf")
    if request.structural_tag is not None:
        yield Grammar("structural_tag", request.structural_tag, "structural_tag")


def _of_response_format(given: schema.ResponseFormat | None) -> Iterator[Grammar]:
    match given:
        case schema.JsonObjectFormat():
            yield _json_schema(_OBJECT, "response_format")
        case schema.JsonSchemaFormat(json_schema=named):
            wanted = {} if named.schema is None else named.schema
            yield _json_schema(wanted, "response_format.json_schema.schema", lenient=named.strict is False)
        case schema.StructuralTagFormat():
            parts = {name: value for name in given.__struct_fields__ if (value := getattr(given, name)) is not None}
            yield Grammar("structural_tag", _text(parts), "response_format")


def _of_structured_outputs(given: schema.StructuredOutputs | None) -> Iterator[Grammar]:
    if given is None:
        return
    if given.json is not None:
        yield _json_schema(given.json, "structured_outputs.json")
    if given.json_object:
        yield _json_schema(_OBJECT, "structured_outputs.json_object")
    if given.regex is not None:
        yield Grammar("regex", given.regex, "structured_outputs.regex")
    if given.choice is not None:
        yield _choice(given.choice, "structured_outputs.choice")
    if given.grammar is not None:
        yield Grammar("ebnf", given.grammar, "structured_outputs.grammar")
    if given.structural_tag is not None:
        yield Grammar("structural_tag", given.structural_tag, "structured_outputs.structural_tag")


def _json_schema(wanted: dict[str, Any] | str, param: str, *, lenient: bool = False) -> Grammar:
    return Grammar("json_schema", wanted if isinstance(wanted, str) else _text(wanted), param, lenient)


def _choice(texts: list[str], param: str) -> Grammar:
    choice = {"type": "or", "elements": [{"type": "const_string", "value": text} for text in texts]}
    return Grammar("structural_tag", _text({"format": choice}), param)


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()
