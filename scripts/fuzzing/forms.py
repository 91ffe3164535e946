"""Makes requests for transcripts: forms that contain sounds, and right and wrong fields. Some of the forms and some of
the sounds are damaged.
"""

from __future__ import annotations

import random

from fuzzing.damage import damaged
from fuzzing.seeds import Seed
from fuzzing.sending import FuzzCase

PATHS = ("/v1/audio/transcriptions", "/v1/audio/translations")

# Right and wrong values, for known and unknown fields.
_FIELDS: dict[str, tuple[str, ...]] = {
    "model": ("qwen3-omni", "", "\0", "é"),
    "language": ("en", "zh", "German", "pt-BR", "xx", "en\r\n", "x" * 70),
    "to_language": ("de", "en", "nowhere"),
    "prompt": ("Of ships.", "<|im_end|>", "é" * 1000, "x" * 70_000, "\ud7ff"),
    "response_format": ("json", "text", "verbose_json", "srt", "vtt", "xml"),
    "stream": ("true", "false", "1", "maybe"),
    "include[]": ("logprobs", "words"),
    "include": ("logprobs",),
    "temperature": ("0", "0.7", "2", "3", "-1", "nan", "warm", "1e999"),
    "top_p": ("0", "0.9", "2"),
    "top_k": ("0", "-1", "5", "-5", "1.5"),
    "seed": ("1", "-1", "9" * 20, "x"),
    "max_completion_tokens": ("1", "0", "3"),
    "chunking_strategy": ("auto", "{}"),
    "chunking_strategy[type]": ("server_vad",),
    "timestamp_granularities[]": ("word",),
    "user": ("someone",),
    "file": ("a.wav",),
    "nothing": ("1",),
    "a" * 200: ("1",),
}
_BOUNDARIES = ("b", "--", "x" * 70, "x" * 71, "a b", "")


def make(number: int, seed: int, files: list[Seed]) -> FuzzCase:
    """Make case `number`. The same seed and the same libraries make the same case."""
    rng = random.Random(f"forms:{seed}:{number}")
    file = files[number % len(files)]
    data, how = file.data, "whole"
    if rng.random() < 0.5:
        how, data = damaged(data, rng, [other.data for other in files])
    names = rng.sample(list(_FIELDS), rng.choice((0, 1, 1, 2, 4)))
    fields = [(name, rng.choice(_FIELDS[name]).encode()) for name in names]
    fields.insert(rng.randrange(len(fields) + 1), ("file", data))
    if rng.random() < 0.9:
        fields.append(("max_tokens", b"2"))
    boundary = rng.choice(_BOUNDARIES) if rng.random() < 0.1 else "form-boundary"
    body, state = _form(fields, boundary), "sound form"
    if rng.random() < 0.3:
        state, body = damaged(body, rng, [_form(fields[:1], boundary)])
    path = rng.choice(PATHS)
    what = f"{file.name}, {how}, {', '.join(names)}, {state}, {len(body)} bytes to {path}"
    headers = {"Content-Type": f'multipart/form-data; boundary="{boundary}"'}
    return FuzzCase(what, "form", path, {"data": body, "headers": headers})


def _form(fields: list[tuple[str, bytes]], boundary: str) -> bytes:
    head = '--{}\r\nContent-Disposition: form-data; name="{}"\r\n\r\n'
    parts = [head.format(boundary, name).encode() + value + b"\r\n" for name, value in fields]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()])
