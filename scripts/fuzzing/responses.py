"""Generates requests to the Responses API from the API's own description."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from fuzzing.api import ApiFuzzer
from gateway.bench.events import EventSplitter

_ENDS = {"response.completed", "response.incomplete", "response.failed"}


class ResponsesFuzzer(ApiFuzzer):
    """Sends generated requests for responses; see `ApiFuzzer`."""

    path = "/v1/responses"
    last_event = None

    def tamed(self, body: Any, rng: random.Random) -> Any:
        """`body` changed so that its answer has few tokens, and so that most of its media exist."""
        if not isinstance(body, dict):
            return body
        body = self._with_media(body, rng) | {"max_output_tokens": rng.randrange(1, 8)}
        if isinstance(body.get("extra_body"), dict):
            body["extra_body"].pop("max_output_tokens", None)
        if rng.random() < 0.8:  # in most requests, remove contradictions between fields
            body["mm_processor_kwargs"] = None
            names = [tool["name"] for tool in body.get("tools") or () if isinstance(tool, dict) and "name" in tool]
            choices: list[Any] = [None, "auto", "none"]
            if names:
                choices += ["required", {"type": "function", "name": rng.choice(names)}]
            body["tool_choice"] = rng.choice(choices)
        return body

    def _with_media(self, value: Any, rng: random.Random) -> Any:
        result = super()._with_media(value, rng)
        if isinstance(result, dict):
            if result.get("type") == "input_image" and "image_url" in result:
                result["image_url"] = self._medium("image", result["image_url"], rng)
            if result.get("type") == "input_file":
                result["file_data"] = self._medium(rng.choice(["image", "audio", "video"]), "", rng)
                result.pop("file_url", None)
        return result

    def _event_problems(self, text: str) -> Iterator[str]:
        yield from super()._event_problems(text)
        events = [json.loads(event) for event in EventSplitter().feed(text.encode())]
        if "error" in events[-1]:
            return
        if [event["sequence_number"] for event in events] != [*range(len(events))]:
            yield "the events are not numbered in order"
        if events[-1]["type"] not in _ENDS:
            yield f"a stream ended with {events[-1]['type']}"
