"""The settings of turn detection are read as clients send them, and errors name the wrong settings."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.realtime.turns.turn_options import SemanticVad, ServerVad, TurnOptions, read_turn_options
from omni_pipeline.errors import OmniError

PLACE = "session.audio.input.turn_detection"


@pytest.mark.parametrize(
    ("value", "current", "read"),
    [
        ({"type": "server_vad"}, None, ServerVad()),
        ({}, None, ServerVad()),
        ({"type": "semantic_vad", "eagerness": "low"}, ServerVad(), SemanticVad(eagerness="low")),
        ({"type": "semantic_vad", "eagerness": None}, None, SemanticVad()),
        (None, ServerVad(), None),
        (False, ServerVad(), None),
        ({"threshold": 0}, ServerVad(silence_duration_ms=200), ServerVad(threshold=0, silence_duration_ms=200)),
        (
            {"interrupt_response": False},
            SemanticVad(eagerness="high"),
            SemanticVad(eagerness="high", interrupt_response=False),
        ),
        ({"type": "server_vad"}, SemanticVad(create_response=False), ServerVad()),
        ({"silence_duration_ms": 700.0}, None, ServerVad(silence_duration_ms=700)),
        ({"threshold": None}, ServerVad(threshold=0.7), ServerVad(threshold=0.7)),
        ({"idle_timeout_ms": None}, ServerVad(idle_timeout_ms=6_000), ServerVad()),
        ({"threshold": 0.6}, ServerVad(idle_timeout_ms=6_000), ServerVad(threshold=0.6, idle_timeout_ms=6_000)),
    ],
)
def test_settings_are_read(value: Any, current: TurnOptions | None, read: TurnOptions | None) -> None:
    assert read_turn_options(value, current, PLACE) == read


@pytest.mark.parametrize(
    ("value", "field", "part"),
    [
        ("server_vad", "", "expected `object`"),
        (True, "", "expected `object`"),
        ({"type": "vad"}, ".type", "known: server_vad, semantic_vad"),
        ({"type": 3}, ".type", "expected `str`"),
        ({"type": {}}, ".type", "expected `str`"),
        ({"threshold": 1.01}, ".threshold", "<= 1"),
        ({"threshold": "high"}, ".threshold", "expected `float`"),
        ({"prefix_padding_ms": -1}, ".prefix_padding_ms", ">= 0"),
        ({"silence_duration_ms": 10_001}, ".silence_duration_ms", "<= 10000"),
        ({"idle_timeout_ms": 4_999}, ".idle_timeout_ms", ">= 5000"),
        ({"type": "semantic_vad", "eagerness": "lazy"}, ".eagerness", "known: low, medium, high, auto"),
        ({"create_response": 1}, ".create_response", "expected `bool`"),
        ({"treshold": 0.5}, ".treshold", "did you mean 'threshold'"),
        ({"type": "semantic_vad", "threshold": 0.5}, ".threshold", "Unknown field"),
    ],
)
def test_wrong_settings_are_named(value: Any, field: str, part: str) -> None:
    with pytest.raises(OmniError) as raised:
        read_turn_options(value, ServerVad(), PLACE)
    info = raised.value.info
    assert (info.status, info.param) == (400, PLACE + field)
    assert part in info.message
