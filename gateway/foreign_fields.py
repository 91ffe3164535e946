"""The fields of the OpenAI API and of peers that this server knows by name without serving them."""

from __future__ import annotations

from typing import Any

# Hints about accounting, routing or caching: the answer is as good without them, so they are accepted and not read.
IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)

_NO_TOOLS = "this server does not call tools"
_NO_SPEECH = "this server runs without speech stages"

# What would change the answer: refused by name, unless the value asks for nothing. field → (such values, why refused).
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "tools": (([],), _NO_TOOLS),
    "tool_choice": (("none", "auto"), _NO_TOOLS),
    "functions": (([],), _NO_TOOLS),
    "function_call": (("none", "auto"), _NO_TOOLS),
    "web_search_options": ((), "this server does not search the web"),
    "response_format": (({"type": "text"},), "only {'type': 'text'} is served"),
    "moderation": ((), "this server does not moderate"),
    "talker_temperature": ((), _NO_SPEECH),
    "talker_top_p": ((), _NO_SPEECH),
    "talker_top_k": ((), _NO_SPEECH),
    "talker_repetition_penalty": ((), _NO_SPEECH),
    "talker_max_new_tokens": ((), _NO_SPEECH),
}

# The same for the stages of `stage_sampling`.
REFUSED_STAGES = {"talker_ar": _NO_SPEECH, "code_predictor": _NO_SPEECH}
