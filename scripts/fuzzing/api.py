"""Generates valid and invalid requests from the API's own description, and checks the answers against it."""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Iterable, Iterator
from typing import Any

import hypothesis
import jsonschema
import requests
import schemathesis
from schemathesis import Case, GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from fuzzing.findings import DELIBERATE, FuzzFinding, FuzzReport
from fuzzing.seeds import seeds
from gateway.bench.events import DONE, EventSplitter

# The number of requests in one batch. A batch is one search by Hypothesis, and has its own seed.
BATCH = 50
_SECONDS = 60.0
_MEDIA = {"image": ("images", "image_url"), "audio": ("audios", "audio_url"), "video": ("videos", "video_url")}
# Error codes that a request may get although it follows the API's description. The description cannot express every
# rule.
REFUSABLE = {
    "invalid_value", "unsupported_value", "missing_required_parameter", "invalid_url", "invalid_base64",
    "media_not_allowed", "media_not_found", "media_fetch_failed", "invalid_image", "invalid_audio", "invalid_video",
    "image_too_large", "video_too_large", "audio_too_long", "video_too_long", "video_too_many_frames",
    "audio_not_found", "context_length_exceeded", "too_many_media", "text_too_long", "invalid_grammar",
    "ok",
}  # fmt: skip


class ApiFuzzer:
    """Sends generated chat requests to a server.

    Args:
        url: Address of the server.
        report: Collects the outcomes.

    Attributes:
        path: Path of the endpoint.
        last_event: Data of the last event of a stream; None if the description allows only one kind of event.
    """

    path = "/v1/chat/completions"
    last_event: str | None = DONE

    def __init__(self, url: str, report: FuzzReport) -> None:
        load_all_checks()
        self._url = url
        self._report = report
        self._session = requests.Session()
        document = self._session.get(f"{url}/openapi.json", timeout=_SECONDS).json()
        self._schema = schemathesis.openapi.from_dict(document)
        events = document["paths"][self.path]["post"]["responses"]["200"]["content"]["text/event-stream"]
        self._event = jsonschema.Draft202012Validator(events["x-event"] | {"components": document["components"]})
        self._media: dict[str, list[str]] = {kind: [] for kind in _MEDIA}
        for seed in seeds():
            self._media[seed.kind].append(f"data:;base64,{base64.b64encode(seed.data).decode()}")
        pictures = [address.partition(",")[2] for address in self._media["image"]]
        self._media["video"].append(f"data:video/jpeg;base64,{','.join(pictures)}")

    def run(self, batches: Iterable[int]) -> None:
        """Send the requests of these batches. Batches of valid and of invalid requests alternate."""
        for batch in batches:
            mode = GenerationMode.NEGATIVE if batch % 2 else GenerationMode.POSITIVE
            self._search(batch, mode)

    def _search(self, batch: int, mode: GenerationMode) -> None:
        operation = self._schema[self.path]["POST"]
        seed = self._report.seed * 1_000_003 + batch
        rng = random.Random(seed)

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=BATCH,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def search(case: Case) -> None:
            if mode is GenerationMode.POSITIVE:
                case.body = self.tamed(_without_budgets(case.body), rng)
            self._send(case, mode, batch)

        search()

    def _send(self, case: Case, mode: GenerationMode, batch: int) -> None:
        number = self._report.cases
        what = f"batch {batch}, {mode.value} {json.dumps(case.body, default=str)[:2000]}"
        began = time.monotonic()
        try:
            response = case.call(base_url=self._url, session=self._session, timeout=_SECONDS)
        except Exception as error:  # every error that keeps a client from getting an answer is a finding
            self._report.findings.append(FuzzFinding(number, what, f"{type(error).__name__}: {error}"))
            return
        code = _code(response)
        self._report.count(number, what, f"{mode.value} {response.status_code} {code}", time.monotonic() - began)
        self._report.judge(number, what, response.status_code, code)
        problems = list(self._problems(case, response, mode, code))
        self._report.findings += [FuzzFinding(number, what, problem) for problem in problems]

    def _problems(self, case: Case, response: Any, mode: GenerationMode, code: str) -> Iterator[str]:
        kind = response.headers.get("content-type", [""])[0]
        streamed = kind.startswith("text/event-stream")
        checks = [status_code_conformance, content_type_conformance]
        if kind.startswith("application/json"):
            checks.append(response_schema_conformance)
        if mode is GenerationMode.NEGATIVE:
            checks.append(negative_data_rejection)
        elif code not in REFUSABLE | DELIBERATE:
            yield f"a valid request was refused with {code}"
        try:
            case.validate_response(response, checks=checks, excluded_checks=[not_a_server_error])
        except FailureGroup as failures:
            yield from (f"{type(failure).__name__}: {failure}"[:1000] for failure in failures.exceptions)
        if streamed:
            yield from self._event_problems(response.content.decode())

    def _event_problems(self, text: str) -> Iterator[str]:
        *events, last = EventSplitter().feed(text.encode())
        for event in events:
            if not self._event.is_valid(json.loads(event)):
                yield f"an event does not match the API's description: {event[:300]}"
        if self.last_event is None and self._event.is_valid(json.loads(last)):
            return
        if last != self.last_event and '"error"' not in last:
            yield f"a stream ended without its last event or an error: {last[:300]}"

    def tamed(self, body: Any, rng: random.Random) -> Any:
        """`body` changed so that its answer has few tokens, and so that most of its media exist."""
        if not isinstance(body, dict):
            return body
        body = self._with_media(body, rng)
        for name in ("max_completion_tokens", "min_tokens"):
            body.pop(name, None)
        body |= {"max_tokens": rng.randrange(1, 5), "talker_max_new_tokens": rng.randrange(1, 6)}
        for stage in ("thinker", "talker_ar"):
            if isinstance((body.get("stage_sampling") or {}).get(stage), dict):
                body["stage_sampling"][stage].pop("max_tokens", None)
        if rng.random() < 0.8:  # in most requests, remove contradictions between fields
            body["stream_options"] = {"include_usage": rng.random() < 0.5} if body.get("stream") else None
            body["logprobs"] = True if body.get("top_logprobs") is not None else body.get("logprobs")
            body |= {"logit_bias": None, "stop_token_ids": None, "voice": None, "speaker": None}
            body["audio"] = {"format": rng.choice(["wav", "pcm16", "flac", "mp3", "opus", "aac"])}
        return body

    def _with_media(self, value: Any, rng: random.Random) -> Any:
        if isinstance(value, list):
            return [self._with_media(item, rng) for item in value[:4]]
        if not isinstance(value, dict):
            return value
        result = {name: self._with_media(item, rng) for name, item in value.items()}
        for kind, (listed, part) in _MEDIA.items():
            if isinstance(result.get(listed), list):
                result[listed] = [self._medium(kind, address, rng) for address in result[listed]]
            if isinstance(result.get(part), dict) and "url" in result[part]:
                result[part] = result[part] | {"url": self._medium(kind, result[part]["url"], rng)}
            for name in (part, kind):
                if isinstance(result.get(name), str) and result.get("type") == name:
                    result[name] = self._medium(kind, result[name], rng)
        if isinstance(result.get("video"), list):
            result["video"] = [self._medium("image", address, rng) for address in result["video"]]
        if isinstance(result.get("file"), dict) and "file_data" in result["file"]:
            result["file"]["file_data"] = self._medium(rng.choice([*_MEDIA]), result["file"]["file_data"], rng)
        if isinstance(result.get("input_audio"), dict):
            result["input_audio"]["data"] = self._medium("audio", "", rng).partition(",")[2]
        return result

    def _medium(self, kind: str, address: Any, rng: random.Random) -> Any:
        return address if address and rng.random() < 0.1 else rng.choice(self._media[kind])


def _without_budgets(body: Any) -> Any:
    """`body` without limits on reasoning, because a model that does not reason refuses these limits."""
    if not isinstance(body, dict):
        return body
    kept = {name: value for name, value in body.items() if name not in ("thinking_budget", "thinking_token_budget")}
    return kept | {"extra_body": _without_budgets(body["extra_body"])} if "extra_body" in body else kept


def _code(response: Any) -> str:
    """``ok``, or the error code of an answer."""
    if response.status_code < 400:
        return "ok"
    try:
        return str(response.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "no error body"
