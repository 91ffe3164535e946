"""Frames a stream of JSON bodies as server-sent events."""

from __future__ import annotations

import msgspec

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # asks proxies not to buffer events
}
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"  # a comment, which clients skip

_encoder = msgspec.json.Encoder()


def event(body: msgspec.Struct, name: str | None = None) -> bytes:
    """One event with the JSON of `body` as data, and with `name` if it is given. The JSON contains no line breaks."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + _encoder.encode(body) + b"\n\n"
