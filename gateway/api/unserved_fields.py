"""Lists the fields of the OpenAI API and of similar servers that this server recognises but does not support."""

from __future__ import annotations

from typing import Any

# Hints about accounting, routing or caching. These fields are accepted and not read, because they do not change the
# answer.
IGNORED = frozenset(
    {
        "guided_decoding_backend",
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)

# Fields that would change the answer. Each comes with the values that have no effect, and with the reason why other
# values are refused. A value that has no effect is accepted. Any other value is refused with an error that names the
# field.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "functions": (([],), "use 'tools'"),
    "function_call": (("none", "auto"), "use 'tool_choice'"),
    "web_search_options": ((), "this server does not search the web"),
    "moderation": ((), "this server does not moderate content"),
    "media_io_kwargs": (({},), "use 'video_fps' and 'video_max_frames'"),
    "request_id": ((), "send the id in the header 'X-Request-Id'"),
    "sampling_params_list": (([],), "use 'stage_sampling', which sets parameters for each stage"),
    "stage_params": (({},), "use 'stage_sampling'"),
}

# Options of content parts and of `mm_processor_kwargs` that would change the answer. The server refuses all these
# options. Each key is the name of an option, and its value is the reason for the refusal.
REFUSED_OPTIONS: dict[str, str] = {
    "file_id": "this server does not store files; send the file in 'file_data'",
    "min_frames": "use 'fps'",
    "nframes": "use 'fps' and 'max_frames'",
    "num_frames": "use 'fps' and 'max_frames'",
    "raw_fps": "use 'fps'",
    "resized_height": "use 'min_pixels' and 'max_pixels'",
    "resized_width": "use 'min_pixels' and 'max_pixels'",
    "sample_fps": "use 'fps'",
    "video_end": "the server always uses the whole clip; cut the clip before you send it",
    "video_metadata": "the server reads the times of the frames from the clip",
    "video_start": "the server always uses the whole clip; cut the clip before you send it",
}
