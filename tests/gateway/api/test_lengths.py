"""Tests that the maximum length of an answer follows from the request's limits and the operator's limits."""

from __future__ import annotations

import json

import pytest

from gateway.api.lengths import speech_limit, text_limit
from omni_pipeline.errors import OmniError
from tests.gateway.json_bodies import parse


def request(**fields):
    return parse(json.dumps({"messages": [{"role": "user", "content": "x"}]} | fields).encode())


@pytest.mark.parametrize(
    ("fields", "most", "limit"),
    [
        ({}, None, None),
        ({}, 100, 100),
        ({"max_tokens": 5}, None, 5),
        ({"max_tokens": 5}, 100, 5),
        ({"max_tokens": 100}, 100, 100),
        ({"max_completion_tokens": 7}, 100, 7),
        ({"max_tokens": 5, "stage_sampling": {"thinker": {"max_tokens": 9}}}, 100, 9),
        ({"max_tokens": 500, "stage_sampling": {"thinker": {"max_tokens": 9}}}, 100, 9),
    ],
)
def test_text(fields, most, limit):
    assert text_limit(request(**fields), most) == limit


@pytest.mark.parametrize(
    ("fields", "most", "limit"),
    [
        ({}, None, None),
        ({}, 100, 100),
        ({"talker_max_new_tokens": 5, "max_tokens": 500}, 100, 5),
        ({"talker_max_new_tokens": 5, "stage_sampling": {"talker_ar": {"max_tokens": 9}}}, 100, 9),
    ],
)
def test_speech(fields, most, limit):
    assert speech_limit(request(**fields), most) == limit


@pytest.mark.parametrize(
    ("limited", "fields", "param"),
    [
        (text_limit, {"max_tokens": 101}, "max_tokens"),
        (text_limit, {"max_completion_tokens": 101}, "max_completion_tokens"),
        (text_limit, {"stage_sampling": {"thinker": {"max_tokens": 101}}}, "stage_sampling.thinker.max_tokens"),
        (text_limit, {"min_tokens": 101}, "min_tokens"),
        (speech_limit, {"talker_max_new_tokens": 101}, "talker_max_new_tokens"),
        (speech_limit, {"stage_sampling": {"talker_ar": {"max_tokens": 101}}}, "stage_sampling.talker_ar.max_tokens"),
    ],
)
def test_more_than_the_operator_allows_is_refused_by_name(limited, fields, param):
    with pytest.raises(OmniError, match="at most 100 tokens") as caught:
        limited(request(**fields), 100)
    assert (caught.value.info.status, caught.value.info.param) == (400, param)
