"""If a YAML mapping has the same key twice, the file is refused, however deeply the mapping is nested. All other YAML
gives the same result as with PyYAML.
"""

from __future__ import annotations

import pytest
import yaml

from omni_pipeline.config.strict_yaml import RepeatedKeyError, parse


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("a: 1\nb: 2\na: 3\n", "a", (1, 3)),
        ("server:\n  api_keys: [x]\nlog_level: info\nserver:\n  port: 1\n", "server", (1, 4)),
        ("a:\n  b: 1\n  'b': 2\n", "b", (2, 3)),
        ('a: [{b: 1}, {c: 1, "c": 1}]', "c", (1, 1)),
        ("a: &x\n  b: 1\n  b: 2\nc: *x\n", "b", (2, 3)),
        ("1: a\n1: b\n", "1", (1, 2)),
        ("? [x, {y: 1}]\n: {z: 1,\n   z: 2}\n", "z", (2, 3)),
        ("base: &x {a: 1}\nmine:\n  <<: *x\n  <<: *x\n", "<<", (3, 4)),
    ],
)
def test_a_repeated_key_is_refused_with_both_lines(text: str, key: str, lines: tuple[int, int]) -> None:
    with pytest.raises(RepeatedKeyError) as caught:
        parse(text)
    assert str(caught.value) == f"{key} is set twice, in line {lines[0]} and in line {lines[1]}."


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "a", "1.5", "[1, 2]", "{a: {b: 1}, c: {b: 1}}", "a: &x [1]\nb: *x\n", "a: 1\nA: 2\n",
        "base: &x {a: 1, b: 2}\nmine: {<<: *x, a: 3}\n", "outer: &o {<<: {a: 1}, a: 2}\nmine: {<<: *o, a: 4}\n",
    ],
)  # fmt: skip
def test_other_documents_are_read_as_by_pyyaml(text: str) -> None:
    assert parse(text) == yaml.safe_load(text)


@pytest.mark.parametrize("text", ["{", "a: b: c", "--- a\n--- b", "!!python/object:os.system {}"])
def test_what_is_no_yaml_is_an_error(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        parse(text)
