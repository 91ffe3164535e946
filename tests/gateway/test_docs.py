"""The documentation of the API matches the code exactly: fields, ranges, endpoints and error codes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from gateway.api import companions, schema
from gateway.api.openapi import openapi_document
from gateway.api.responses_api import schema as responses_schema
from gateway.api.responses_api.schema import ResponsesRequest
from gateway.api.schema import AudioFormat, ChatCompletionRequest, SamplingByStage, StageSampling
from gateway.api.unserved_fields import IGNORED, REFUSED, REFUSED_OPTIONS
from omni_pipeline.config.schema import Limits, MediaPolicy
from stages.options import PreprocessingOptions, TalkerOptions, ThinkerOptions

ROOT = Path(__file__).parents[2]
API = (ROOT / "docs" / "api.md").read_text()


def section(title: str) -> str:
    """The text under a heading, up to the next heading of the same or a higher level."""
    level, start = title.partition(" ")[0], API.index(f"\n{title}\n") + len(title) + 2
    end = re.search(rf"^#{{1,{len(level)}}} ", API[start:], re.MULTILINE)
    return API[start:][: end.start() if end else None]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in `text`, without header rows and separator rows."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if "---" not in row[0]][1:]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


FIELDS = {name: row for row in rows(section("## Request fields").partition("###")[0]) for name in names(row[0])}


@pytest.mark.parametrize(
    "name",
    sorted(
        {*ChatCompletionRequest.__struct_fields__, *StageSampling.__struct_fields__, *IGNORED, *REFUSED}
        | {*SamplingByStage.__struct_fields__, *get_args(AudioFormat), *REFUSED_OPTIONS}
        | {*schema.ClipOptions.__struct_fields__, *schema.TemplateOptions.__struct_fields__, schema.EXTRA}
    ),
)
def test_every_field_is_documented(name):
    assert f"`{name}`" in API


def test_the_table_of_fields_is_that_of_the_request():
    assert FIELDS.keys() == {*ChatCompletionRequest.__struct_fields__}


def test_what_is_taken_unread_and_what_is_refused_is_listed_as_such():
    text = section("## Request fields")
    taken = text[text.index("**Accepted and ignored**") : text.index("**Refused by name**")]
    refused = text[text.index("**Refused by name**") : text.index("Values without effect are accepted")]
    assert sorted(names(taken)) == sorted(IGNORED)
    assert sorted(names(refused)) == sorted(REFUSED)


def bounds(kind: Any) -> Iterator[float]:
    """The bounds of a numeric field. A bound that is only the limit of a 32-bit integer is left out."""
    match kind:
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            for bound in (kind.ge, kind.gt, kind.le, kind.lt):
                if bound is not None and abs(bound) < 2**31 - 1:
                    yield bound
        case msgspec.inspect.UnionType():
            for member in kind.types:
                yield from bounds(member)
        case msgspec.inspect.DictType():
            yield from bounds(kind.value_type)


@pytest.mark.parametrize("name", FIELDS)
def test_the_range_of_a_field_is_documented(name):
    [kind] = [
        field.type for field in msgspec.inspect.type_info(ChatCompletionRequest).fields if field.encode_name == name
    ]
    documented = FIELDS[name][1].replace(" ", "")
    if documented == "asabove":
        documented = FIELDS[name.removeprefix("talker_")][1]
    numbers = {float(number) for number in re.findall(r"-?[0-9.]+", documented.replace("64-bit", ""))}
    assert {float(bound) for bound in bounds(kind)} <= numbers


def test_every_endpoint_is_documented():
    listed = {endpoint for row in rows(section("## Endpoints")) for endpoint in names(row[0])}
    described = {
        f"{method.upper()} {path}"
        for path, item in openapi_document(with_keys=False)["paths"].items()
        for method in item
    }
    assert {endpoint.replace("{name}", "{model}") for endpoint in listed} == described


MESSAGES = section("### Messages")


def test_every_kind_of_part_is_documented():
    documented = {found[1] for cell, *_ in rows(MESSAGES) if (found := re.search(r'"type": "(\w+)"', cell))}
    assert documented == {part.__struct_config__.tag for part in get_args(schema.Part)}


def test_every_option_of_a_part_is_documented():
    table = MESSAGES[MESSAGES.index("| parts | options |") :].partition("\n\n")[0]
    documented = {part: {*names(row[1])} for row in rows(table) for part in names(row[0])}
    options = {
        part.__struct_config__.tag: {*kind.__struct_fields__}
        for part in get_args(schema.Part)
        for kind in (schema.ClipOptions, schema.PictureOptions)
        if part.__mro__[1] is kind
    }
    assert documented.keys() == options.keys()
    assert all(options[part] <= documented[part] for part in options)


def test_the_companions_are_those_of_the_code():
    table = MESSAGES[MESSAGES.index("| field | of | sent by |") :].partition("\n\n")[0]
    listed = [(name, row[1]) for row in rows(table) for name in names(row[0])]
    assert {name for name, places in listed if "messages" in places} == companions.OF_MESSAGES
    assert {name for name, places in listed if "parts" in places} == companions.OF_PARTS
    assert {name for name, places in listed if ", calls" in f", {places}"} == companions.OF_CALLS
    assert {name for name, places in listed if "functions of calls" in places} == companions.OF_FUNCTIONS_OF_CALLS
    assert {name for name, places in listed if ", tools" in places} == companions.OF_TOOLS


def test_the_fields_of_a_tool_are_documented():
    table = next(part for part in section("## Tools").split("\n\n") if part.startswith("| field of `function` |"))
    assert [name for row in rows(table) for name in names(row[0])] == [*schema.FunctionDefinition.__struct_fields__]


def codes() -> set[str]:
    """All error codes in the sources, except those that are built at run time."""
    sources = "".join(
        path.read_text() for part in ("gateway", "stages", "omni_pipeline") for path in (ROOT / part).rglob("*.py")
    )
    return set(re.findall(r'(?:\bcode(?:: str)?|CODE) ?= ?"([a-z_0-9]+)"', sources)) | {
        found
        for line in re.findall(r"_WORDING = \{.*?\n\}", sources, re.DOTALL)
        for found in re.findall(r'"([a-z_]+)"\)', line)
    }


def test_the_error_codes_are_those_of_the_code():
    documented = {code for row in rows(section("## Errors")) for code in names(row[1])}
    assert documented == codes() - {"http_error", "service_unavailable"}


# Settings that are in the same section as the limits, but are not limits.
NO_LIMITS = {
    "local_path",
    "allowed_domains",
    "reasoning_parser",
    "tool_call_parser",
    "transcript_languages",
    "transcribe_prompt",
    "transcribe_language_prompt",
}
NO_LIMITS |= {"transcribe_prompts", "translate_prompt", "translate_language_prompt"}

UNITS = {"": 1, "MiB": 2**20, "GiB": 2**30}
SETTINGS = {"server.limits": Limits, "server.media": MediaPolicy, "stages.preprocessing.options": PreprocessingOptions}


def limits() -> Iterator[tuple[str, str, str]]:
    """For each documented limit, its path in the configuration, its name and its default."""
    for table in section("## Limits").split("\n\n"):
        if table.startswith("| `"):
            path = names(table.partition("\n")[0])[0]
            yield from ((path, names(row[0])[0], row[1]) for row in rows(table))


@pytest.mark.parametrize(("path", "name", "default"), list(limits()))
def test_the_default_of_a_limit_is_documented(path, name, default):
    value = getattr(SETTINGS[path](), name)
    if default in ("none", "false"):
        assert not value
    else:
        number, _, unit = default.partition(" ")
        assert value == float(number) * UNITS[unit]


@pytest.mark.parametrize("path", SETTINGS)
def test_every_limit_is_documented(path):
    documented = {name for owner, name, _ in limits() if owner == path}
    assert documented == {*SETTINGS[path].__struct_fields__} - NO_LIMITS


def test_the_default_lengths_are_documented():
    text = section("## Limits")
    assert f"`thinker` ({ThinkerOptions().default_max_tokens})" in text
    assert f"`talker_ar` ({TalkerOptions().default_max_tokens})" in text


def test_the_fields_of_responses_are_documented():
    text = section("## Responses")
    fields = {name for row in rows(text) if not row[0].startswith("`{") for name in names(row[0])}
    assert fields == {*ResponsesRequest.__struct_fields__}
    listed = {
        kind: text[text.index(f"**{kind}**") :].partition("\n\n")[0]
        for kind in ("Accepted and ignored", "Refused by name")
    }
    assert {*names(listed["Accepted and ignored"])} - {"false"} == responses_schema.IGNORED
    assert {*names(listed["Refused by name"].partition(". ")[0])} == responses_schema.REFUSED.keys()
