"""Lists the fields of the OpenAI API and of similar servers that this server recognises but does not support."""

from __future__ import annotations

from typing import Any

# Hints about accounting, routing or caching. They are accepted and not read, because they do not change the answer.
IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
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

# Fields that would change the answer. A value that has no effect is accepted; any other value is refused, with an error
# that names the field. For each field: the values without effect, and the reason why all other values are refused.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "tools": (([],), _NO_TOOLS),
    "tool_choice": (("none", "auto"), _NO_TOOLS),
    "functions": (([],), _NO_TOOLS),
    "function_call": (("none", "auto"), _NO_TOOLS),
    "web_search_options": ((), "this server does not search the web"),
    "response_format": (({"type": "text"},), "only {'type': 'text'} is supported"),
    "moderation": ((), "this server does not moderate content"),
    "media_io_kwargs": (({},), "use 'video_fps' and 'video_max_frames'"),
    "request_id": ((), "send the id in the header 'X-Request-Id'"),
    "sampling_params_list": (([],), "use 'stage_sampling', which names the stages"),
    "stage_params": (({},), "use 'stage_sampling'"),
}

# Options of content parts and of `mm_processor_kwargs` that would change the answer: refused by name, with the reason.
REFUSED_OPTIONS: dict[str, str] = {
    "file_id": "this server keeps no files; send the file in 'file_data'",
    "min_frames": "use 'fps'",
    "nframes": "use 'fps' and 'max_frames'",
    "num_frames": "use 'fps' and 'max_frames'",
    "raw_fps": "use 'fps'",
    "resized_height": "use 'min_pixels' and 'max_pixels'",
    "resized_width": "use 'min_pixels' and 'max_pixels'",
    "sample_fps": "use 'fps'",
    "video_end": "the model gets the whole clip",
    "video_metadata": "the clip's own times count",
    "video_start": "the model gets the whole clip",
}
