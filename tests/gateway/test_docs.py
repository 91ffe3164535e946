"""The API's documentation names everything that the code knows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from gateway.foreign_fields import IGNORED, REFUSED
from gateway.schema import AudioFormat, ChatCompletionRequest, SamplingByStage, StageSampling

ROOT = Path(__file__).parents[2]
API = (ROOT / "docs" / "api.md").read_text()


@pytest.mark.parametrize(
    "name",
    sorted(
        {*ChatCompletionRequest.__struct_fields__, *StageSampling.__struct_fields__, *IGNORED, *REFUSED}
        | {*SamplingByStage.__struct_fields__, *get_args(AudioFormat)}
    ),
)
def test_every_field_is_documented(name):
    assert f"`{name}`" in API


def test_every_error_code_is_documented():
    sources = "".join(path.read_text() for path in (ROOT / "gateway").glob("*.py"))
    codes = set(re.findall(r'code="([a-z_]+)"', sources))
    assert len(codes) > 20
    assert [code for code in sorted(codes) if f"`{code}`" not in API] == []
