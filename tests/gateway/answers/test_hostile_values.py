"""Tests that no value of any field causes an internal error of the server, and that refused requests leave nothing
open.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.api.schema import ChatCompletionRequest, FrameSampling, StageSampling
from gateway.api.unserved_fields import IGNORED, REFUSED
from gateway.serving import server
from gateway.serving.app import Gateway
from omni_pipeline.contract.graph import GATEWAY
from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.messages import Start
from tests.gateway.scripted import ScriptedPipeline, serving

HOLE = "the value"
USER = {"role": "user", "content": "Hello?"}

NUMBERS = [
    *("0", "-0", "-0.0", "1.0", "1e3", "5e-324", "1e-400", "1.7976931348623157e308", "1e400", "-1e400"),
    *("NaN", "Infinity", "-Infinity", "01", "+1", ".5", "0x10", "1_0"),
    *map(str, (2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1)),
    *("9" * digits for digits in (30, 5000)),
]
TEXTS = [
    *("", "\0", "1", "+5", "1_0", "-1", " 5", "٣", "²", "İ", "NaN", "default", "DEFAULT", "text", "user"),
    *("x" * 2000, "x" * 20_000, "\U0001f600" * 5000, "../" * 2000, "/dev/zero", "/proc/self/mem", "\\", "%00", "~"),
    *(
        "http://",
        "http://[",
        "http://[::1%25x]/",
        "http://127.0.0.1:99999/",
        "http://a b/",
        "http://\0/",
        "https://é:1/",
    ),
    *("data:", "data:,", "data:;base64,=", "data:;base64,AAA=" * 5000, "file://\0", "file://[", "file:///%00", "a:b"),
]
STRINGS = [
    *(json.dumps(text) for text in TEXTS),
    *('"\\ud800"', '"\\udc00\\ud800"', '"\\u00"', '"\\x"', '"\xed\xa0\x80"', '"a', '"\n"'),
]
KEYS = [
    *("", "5", "05", "+5", " 5", "5 ", "-5", "-0", "1_0", "1.0", "1e3", "٣", "²", "0x1", "five", "\0", "x" * 20_000),
    *("0" * 3000 + "9" * 3000, "0" * 10 + "5", "9" * 10, "9" * 30, "9" * 5000, str(2**31 - 1), str(2**31), str(2**63)),
]
OTHERS = [
    *("null", "true", "[]", "{}", "[null]", "[[]]", "[{}]", '[""]', "[0]", "[1e400]", '{"5": 1e400}', '{"5": -0.0}'),
    *('{"5": 1, "5": 2}', '{"type": "text"}', "[" * 100, '{"a":' * 100, "[0,0", "}", ""),
    *(json.dumps({key: 1}) for key in KEYS),
]
VALUES = [text.encode("latin-1" if "\xed" in text else "utf-8") for text in (*NUMBERS, *STRINGS, *OTHERS)]


def within(*path: str) -> dict[str, Any]:
    """A request with the placeholder `HOLE` in the field to which the names in `path` lead."""
    value: Any = HOLE
    for name in reversed(path):
        value = {name: value}
    return {"messages": [USER], "modalities": ["text", "audio"], **value}


def part(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [fields]}]}


def message(role: str, /, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "x"} | fields, USER]}


# One request for each field. The value of the field is the placeholder `HOLE`.
REQUESTS = [
    *(within(field) for field in (*ChatCompletionRequest.__struct_fields__, *IGNORED, *REFUSED, "foreign")),
    *(within("audio", field) for field in ("voice", "format", "foreign")),
    *(within("stream_options", field) | {"stream": True} for field in ("include_usage", "include_obfuscation")),
    *(within("stage_sampling", stage) for stage in ("thinker", "talker_ar", "code_predictor", "foreign")),
    *(within("stage_sampling", "thinker", field) for field in StageSampling.__struct_fields__),
    *(within("stage_sampling", "talker_ar", field) for field in StageSampling.__struct_fields__),
    *(within("stage_sampling", "code_predictor", field) for field in FrameSampling.__struct_fields__),
    *({"messages": [USER], field: [HOLE]} for field in ("images", "videos", "audios", "stop", "stop_token_ids")),
    {"messages": [USER], "logit_bias": {"5": HOLE}},
    {"messages": [HOLE]},
    *(message("user", **{field: HOLE}) for field in ("role", "content", "name", "foreign")),
    *(message("tool", **{field: HOLE}) for field in ("tool_call_id", "name")),
    *(
        message("assistant", **{field: HOLE})
        for field in ("content", "refusal", "annotations", "audio", "tool_calls", "function_call")
    ),
    *(message("assistant", audio={field: HOLE}) for field in ("id", "transcript", "data", "expires_at")),
    *(part(type=HOLE, **{kind: {"url": "x"}}) for kind in ("image_url", "video_url", "audio_url")),
    *(part(type=kind, **{kind: {"url": HOLE}}) for kind in ("image_url", "video_url", "audio_url")),
    *(part(type=kind, **{kind: HOLE}) for kind in ("image_url", "video_url", "audio_url", "input_audio", "text")),
    *(part(type="video", **fields) for fields in ({"video": HOLE}, {"video": [HOLE]}, {"video": ["x"], "fps": HOLE})),
    part(type="image_url", image_url={"url": "x", "detail": HOLE}),
    part(type="input_audio", input_audio={"data": HOLE, "format": "wav"}),
    part(type="input_audio", input_audio={"data": "AAAA", "format": HOLE}),
]


class SendingPipeline(ScriptedPipeline):
    """Encodes every request, as the real pipeline does before it sends a request."""

    codec = Codec({})

    def submit(self, request_id, body, stages=None, **more):
        self.codec.encode(Start(request_id, GATEWAY, "preprocessing", body))
        super().submit(request_id, body, stages)


@pytest.fixture
def gateways(monkeypatch) -> list[Gateway]:
    """The gateways that a test has started."""
    started: list[Gateway] = []

    class Recorded(Gateway):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(server, "Gateway", Recorded)
    return started


async def test_no_value_of_any_field_is_an_error_of_the_server(gateways, tmp_path):
    wrong = []
    async with serving(SendingPipeline(["Hi."]), speaks=True, media={"local_path": str(tmp_path)}) as served:
        await served.ready()
        served.pipeline.answers_warmup = True

        async def post(template: bytes, value: bytes) -> None:
            data = template.replace(json.dumps(HOLE).encode(), value)
            url = f"{served.url}/v1/chat/completions"
            async with served.session.post(url, data=data, headers={"Content-Type": "application/json"}) as response:
                content = await response.read()
            fine = response.status == 200 or (
                400 <= response.status < 500
                and set(json.loads(content)["error"]) == {"message", "type", "param", "code"}
            )
            if not fine or len(content) > 4000:
                wrong.append((response.status, data[:300], content[:300]))

        for request in REQUESTS:
            template = json.dumps(request).encode()
            await asyncio.gather(*(post(template, value) for value in VALUES))
        assert wrong == []
        [gateway] = gateways
        async with asyncio.timeout(5):
            await gateway.admission.empty()
        assert not gateway.collector._open
        assert gateway.admission.held_bytes == 0
        assert not gateway.admission._places.held
