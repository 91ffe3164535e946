"""Reads JSON bodies in tests as the server does."""

from __future__ import annotations

from gateway.api import validation
from gateway.api.schema import ChatCompletionRequest
from gateway.bodies.json_body import JsonBody
from gateway.bodies.reader import JsonBodyReader
from omni_pipeline.config.schema import Limits


def read(data: bytes, limits: Limits | None = None, *, pieces: int = 1 << 15) -> JsonBody:
    """Give `data` to a `JsonBodyReader` in pieces of `pieces` bytes. Returns the body that the reader makes."""
    reader = JsonBodyReader(limits or Limits())
    for begin in range(0, len(data), pieces):
        reader.feed(data[begin : begin + pieces])
    return reader.finish()


def parse(data: bytes, limits: Limits | None = None) -> ChatCompletionRequest:
    """The request in a body."""
    limits = limits or Limits()
    return validation.parse(read(data, limits), limits)
