"""A client can write a request in several ways. The pipeline gets the same request, whichever way the client uses."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from stages.messages import ChatRequest, PictureSize, Text, VideoOptions
from tests.gateway.scripted import Served, serving

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 3
SOUND = b"RIFF\x00\x00\x00\x00WAVE" + bytes(range(255)) * 200  # its base64 is a long string
CLIP = b"\0\0\0\x20ftypisom" + bytes(range(256)) * 2
TEXT = {"type": "text", "text": "What is it?"}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url(data: bytes, kind: str = "application/octet-stream") -> str:
    return f"data:{kind};base64,{encoded(data)}"


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        await served.ready()
        yield served


async def understood(served: Served, body: Any) -> ChatRequest:
    """The request that the pipeline gets, without the names of the media's fields."""
    status, answer = await served.post(body)
    assert status == 200, answer
    request: ChatRequest = served.pipeline.bodies[await served.pipeline.submitted.get()]
    for medium in request.media:
        medium.data = bytes(medium.data.buffer())  # type: ignore[assignment]
        medium.param = ""
    return request


def asking(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*parts, TEXT]}], **fields}


PLAIN = {
    "image": (PICTURE, {"type": "image_url", "image_url": {"url": url(PICTURE)}}),
    "audio": (SOUND, {"type": "input_audio", "input_audio": {"data": encoded(SOUND), "format": "wav"}}),
    "video": (CLIP, {"type": "video_url", "video_url": {"url": url(CLIP)}}),
}


def in_lines(text: str) -> str:
    return "\n".join(text[begin : begin + 76] for begin in range(0, len(text), 76))


def url_safe(text: str) -> str:
    return text.replace("+", "-").replace("/", "_").rstrip("=")


def forms(kind: str) -> list[dict[str, Any]]:
    """Other ways to write the same part."""
    data, _ = PLAIN[kind]
    there = url(data)
    found: list[dict[str, Any]] = [
        {"type": kind, kind: there},
        {"type": f"{kind}_url", f"{kind}_url": there},
        {"type": f"{kind}_url", f"{kind}_url": {"url": there, "detail": "auto", "format": f"{kind}/x", "x": None}},
        {"type": f"{kind}_url", f"{kind}_url": {"url": there}, "cache_control": {"type": "ephemeral"}, "uuid": "1"},
        {"type": kind, kind: f"data:;base64,{in_lines(encoded(data))}"},
        {"type": kind, kind: f"data:;base64,{url_safe(encoded(data))}"},
        {"type": "file", "file": {"file_data": url(data, f"{kind}/x"), "filename": "x"}},
        {"type": "file", "file": {"file_data": there, "filename": "x", "file_id": None}},
        {"type": "file", "file": {"file_data": encoded(data)}},
        {"type": "file", "file": {"file_data": in_lines(url_safe(encoded(data)))}},
    ]
    if kind == "image":
        found.append({"type": "input_image", "image_url": there, "detail": "auto", "file_id": None})
    if kind == "audio":
        sounds = [
            {"data": there},
            {"data": there, "format": "wav"},
            {"data": encoded(data)},
            {"data": in_lines(url_safe(encoded(data))), "format": None},
            *({"data": encoded(data), "format": named} for named in ("WAV", "x-wav", "audio/mpeg", "mpga", "pcm")),
        ]
        found += [{"type": "input_audio", "input_audio": sound} for sound in sounds]
    return found


@pytest.mark.parametrize("kind", PLAIN)
async def test_every_form_of_a_part_is_the_same_part(served: Served, kind: str) -> None:
    plain = await understood(served, asking(PLAIN[kind][1]))
    assert [(medium.kind, medium.data) for medium in plain.media] == [(kind, PLAIN[kind][0])]
    for form in forms(kind):
        assert await understood(served, asking(form)) == plain, form


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.webm", b"\x1a\x45\xdf\xa3....", "video"),
        ("a.weba", b"\x1a\x45\xdf\xa3....", "audio"),
        ("a.ogg", b"OggS....", "audio"),
        ("a.ogv", b"OggS....", "video"),
        ("a.m4a", b"\0\0\0 ftypisom", "audio"),
        ("a.mp4", b"\0\0\0 ftypisom", "video"),
        ("a.mov", b"\0\0\0 ftypqt  ", "video"),
        ("", b"\0\0\0 ftypM4A ", "audio"),
        ("a.mp4", b"\0\0\0 ftypavif", "image"),
        ("a.wav", b"RIFF....WEBP", "image"),
        ("", b"RIFF....AVI ", "video"),
        ("", b"ID3\x04", "audio"),
        ("", b"\xff\xfb\x90\x00", "audio"),
        ("", b"\xff\xf1\x50\x80", "audio"),
        ("", b"\xff\xd8\xff\xe0", "image"),
        ("", b"GIF89a", "image"),
        ("", b"fLaC", "audio"),
        ("", b"II*\x00", "image"),
    ],
)
async def test_the_content_of_a_file_says_what_it_is(served: Served, name: str, content: bytes, kind: str) -> None:
    request = await understood(
        served, asking({"type": "file", "file": {"file_data": encoded(content), "filename": name}})
    )
    assert [medium.kind for medium in request.media] == [kind]


@pytest.mark.parametrize(
    "file",
    [
        {"file_data": url(b"%PDF-1.7 ......", "application/pdf"), "filename": "a.pdf"},
        {"file_data": encoded(b"%PDF-1.7 ......"), "filename": "a.png"},
        {"file_data": encoded(b"PK\x03\x04 a document")},
        {"file_data": encoded(b"plain words"), "filename": "a.txt"},
        {"file_data": "!"},
        {"file_data": "https://example.org/a.png"},
        {"file_data": "file:///a.png"},
    ],
)
async def test_a_file_of_another_kind_is_refused_by_name(served: Served, file: dict[str, str]) -> None:
    status, answer = await served.post(asking({"type": "file", "file": file}))
    assert (status, answer["error"]["code"]) == (400, "unsupported_value")
    assert answer["error"]["param"] == "messages[0].content[0].file.file_data"


async def test_the_field_of_a_medium_is_named_as_the_client_wrote_it(served: Served) -> None:
    for form, field in (
        ({"type": "image", "image": "ftp://x/"}, "image"),
        ({"type": "image_url", "image_url": "ftp://x/"}, "image_url"),
        ({"type": "image_url", "image_url": {"url": "ftp://x/"}}, "image_url.url"),
        ({"type": "input_audio", "input_audio": {"data": "ftp://x/"}}, "input_audio.data"),
        ({"type": "file", "file": {"file_data": url(PICTURE)[:-1] + "!"}}, "file.file_data"),
    ):
        status, answer = await served.post(asking(form))
        assert (status, answer["error"]["param"]) == (400, f"messages[0].content[0].{field}")


async def test_a_sound_may_be_named_by_its_url(served: Served) -> None:
    """The address policy applies to the URL of a sound as to every other URL."""
    sound = {"type": "input_audio", "input_audio": {"data": "http://127.0.0.1/a.wav", "format": "wav"}}
    status, answer = await served.post(asking(sound))
    assert (status, answer["error"]["code"]) == (400, "media_not_allowed")


async def test_options_of_parts_reach_their_own_items(served: Served) -> None:
    request = await understood(
        served,
        asking(
            {"type": "video", "video": url(CLIP), "fps": 1.0, "use_audio_in_video": True},
            {"type": "video_url", "video_url": url(CLIP), "max_pixels": 100_352},
            {"type": "video_url", "video_url": url(CLIP)},
            {"type": "image", "image": url(PICTURE), "min_pixels": 50_176},
            {"type": "image_url", "image_url": url(PICTURE)},
            video_fps=3,
        ),
    )
    assert request.video == VideoOptions(fps=3.0)
    assert [medium.video for medium in request.media] == [
        VideoOptions(fps=1.0, use_audio=True),
        VideoOptions(fps=3.0, max_pixels=100_352),
        None,
        None,
        None,
    ]
    assert [medium.size for medium in request.media] == [None, None, None, PictureSize(min_pixels=50_176), None]


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": [TEXT]},
]
COMPANIONS = [
    {"role": "system", "content": "Be brief.", "cache_control": {"type": "ephemeral"}, "id": "1"},
    {"role": "user", "content": "Hello?", "name": None, "tool_calls": None, "anything": None},
    {
        "role": "assistant",
        "content": "Hi.",
        "thinking_blocks": [{"type": "thinking", "thinking": "x"}],
        "annotations": [{"type": "url_citation"}],
        "provider_specific_fields": {"refusal": None},
        "refusal": None,
        "audio": None,
        "function_call": None,
        "tool_calls": [],
        "index": 0,
        "content-type": "text/plain",
    },
    {"role": "user", "content": [TEXT | {"annotations": [], "id": "lc_1", "index": 0, "extras": {}, "text2": None}]},
]


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ({}, None),
        ({"reasoning_content": "x" * 20_000}, "x" * 20_000),
        ({"reasoning": "x"}, "x"),
        ({"reasoning": "x", "reasoning_content": "y"}, "y"),
        ({"reasoning_content": "x", "content": None}, "x"),
    ],
)
async def test_earlier_reasoning_reaches_the_pipeline(served: Served, sent: dict[str, Any], read: str | None) -> None:
    answer = {"role": "assistant", "content": "Hi."} | sent
    request = await understood(served, asking() | {"messages": [*CONVERSATION[:2], answer, CONVERSATION[3]]})
    assert [turn.reasoning for turn in request.turns] == [None, None, read, None]
    assert request.turns[2].content == [Text(answer["content"] or "")]


@pytest.mark.parametrize(
    ("form", "plain"),
    [
        ({"messages": COMPANIONS}, {}),
        ({"messages": [*CONVERSATION[:-1], {"role": "user", "content": [TEXT | {"type": "input_text"}]}]}, {}),
        ({"top_p": 0, "temperature": 1}, {"temperature": 0}),
        ({"top_p": 0.0, "temperature": 1.5, "top_k": 3}, {"top_k": 3}),
        ({"max_tokens": 16.0, "seed": 7.0, "temperature": 2.0}, {"max_tokens": 16, "seed": 7, "temperature": 2}),
        ({"logprobs": False, "top_logprobs": 0}, {}),
        ({"extra_body": {"max_tokens": 16, "top_k": 4}, "top_k": 4}, {"max_tokens": 16, "top_k": 4}),
        ({"mm_processor_kwargs": {"use_audio_in_video": True, "fps": 1}}, {"use_audio_in_video": True, "video_fps": 1}),
        ({"chat_template_kwargs": {"add_generation_prompt": True}, "mm_processor_kwargs": {}}, {}),
    ],
)  # fmt: skip
async def test_a_request_is_understood_as_its_plain_form(served: Served, form: Any, plain: Any) -> None:
    expected = await understood(served, {"messages": CONVERSATION} | plain)
    assert await understood(served, {"messages": CONVERSATION} | form) == expected


async def test_a_byte_order_mark_is_taken(served: Served) -> None:
    body = json.dumps(asking(PLAIN["audio"][1])).encode()
    assert await understood(served, b"\xef\xbb\xbf" + body) == await understood(served, body)


async def test_options_of_the_chat_template_reach_the_pipeline(served: Served) -> None:
    for thinking in (True, False):
        request = await understood(served, asking(chat_template_kwargs={"enable_thinking": thinking}))
        assert request.thinking is thinking
