"""Reads streamed answers event by event, without a client library."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gateway.bench.events import DONE, EventSplitter
from tests.device import PATIENCE
from tests.server import Server

__all__ = ["DONE", "stream", "text_of"]


@contextmanager
def stream(server: Server, body: dict[str, Any]) -> Iterator[Iterator[Any]]:
    """Sends a request, and yields an iterator over the events of the streamed answer: parsed JSON, and finally `DONE`.
    The connection is closed when the context ends.
    """
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE.request)
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body | {"stream": True}), {"content-type": "application/json"}
        )
        response = connection.getresponse()
        assert response.status == 200, response.read()
        yield _events(response)
    finally:
        connection.close()


def _events(response: http.client.HTTPResponse) -> Iterator[Any]:
    splitter = EventSplitter()
    while received := response.read1():
        for data in splitter.feed(received):
            yield data if data == DONE else json.loads(data)


def text_of(events: Iterator[Any]) -> str:
    """Reads a stream to its end, and returns the text of the remaining events. The stream must end without an error."""
    text = ""
    last = None
    for last in events:
        if last != DONE:
            assert "error" not in last, last
            text += "".join(choice["delta"].get("content", "") for choice in last["choices"])
    assert last == DONE
    return text
