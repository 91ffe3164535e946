"""The JSON schema accepts exactly the files that are valid configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from omni_pipeline.config.json_schema import descriptions, json_schema, structs
from omni_pipeline.config.schema import Config, MediaPolicy, StageConfig
from omni_pipeline.contract.graph import load_graph
from tests.omni_pipeline.conftest import ROOT

GRAPH = load_graph(Config().graph)


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json_schema(GRAPH)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_committed_configuration_follows_the_schema(path: Path, validator: jsonschema.Draft202012Validator) -> None:
    assert list(validator.iter_errors(yaml.safe_load(path.read_text()))) == []


@pytest.mark.parametrize(
    "tree",
    [
        {"sever": {}},
        {"stages": {"thinkr": {}}},
        {"stages": {"thinker": {"options": {"cache_bytes": 1}}}},
        {"stages": {"thinker": {"memory": 1.5}}},
        {"stages": {"thinker": {"memory": "12Gib"}}},
        {"server": {"port": 70000}},
    ],
    ids=str,
)
def test_schema_refuses_what_the_server_refuses(
    tree: dict[str, Any], validator: jsonschema.Draft202012Validator
) -> None:
    assert list(validator.iter_errors(tree))


@pytest.mark.parametrize(
    "kind",
    [*structs(Config), StageConfig, *dict.fromkeys(spec.options for spec in GRAPH.stages)],
    ids=lambda kind: kind.__name__,
)
def test_every_setting_is_described(kind: type[msgspec.Struct]) -> None:
    assert {field.name for field in msgspec.structs.fields(kind)} == descriptions(kind).keys()


def test_description_of_several_lines_and_fields_is_joined() -> None:
    texts = descriptions(MediaPolicy)
    assert texts["max_items"] == "Maximum number of media items in one request."
    assert texts["allowed_domains"].startswith("Hosts (`example.org`, or `10.0.0.5:9000`)")
    assert texts["allowed_domains"].endswith("A listed host is also allowed if its address is private.")
