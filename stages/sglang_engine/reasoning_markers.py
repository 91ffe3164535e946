"""Returns the markers of reasoning in a text, from SGLang's reasoning detectors.

The streaming functions of the detectors are not used, for two reasons:
- their result depends on how the text is divided into pieces;
- they do not return the positions of the reasoning and of the answer in the text.
"""

from __future__ import annotations

import importlib
from typing import Any

from msgspec import Struct

from stages.sglang_engine import environment

environment.prepare()

# The import takes seconds, so this module is imported once, in the process from which workers are forked.
_DETECTORS: dict[str, Any] = importlib.import_module("sglang.srt.parser.reasoning_parser").ReasoningParser.DetectorMap

PARSERS = ("qwen3", "qwen3-thinking", "deepseek-r1")
"""SGLang's names for the parsers that find reasoning between two markers at the beginning of an answer."""

# Parsers for models that always reason, even if neither the prompt nor the answer has an opening marker.
_ALWAYS = ("qwen3-thinking", "deepseek-r1")


class ReasoningMarkers(Struct, frozen=True):
    """The texts that mark the reasoning.

    Attributes:
        interrupting: The text with which a tool call begins. Such a call ends the reasoning even without a closing
            marker. May be empty.
        always: Whether every answer begins with reasoning, with or without an opening marker.
    """

    opening: str
    closing: str
    interrupting: str
    always: bool


def markers(parser: str) -> ReasoningMarkers:
    """The markers that `parser`, one of `PARSERS`, searches for."""
    detector = _DETECTORS[parser]()
    return ReasoningMarkers(
        detector.think_start_token, detector.think_end_token, detector.tool_start_token or "", parser in _ALWAYS
    )
