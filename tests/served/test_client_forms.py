"""A client can write a request in several ways. The answer has the same log-probabilities, whichever way the client
uses.
"""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reference import NEAR_TIE, Conversation, Reference, differs
from tests.server import Server

FILES = {"image": "tests/data/cars.jpg", "audio": "tests/data/query_to_cars.wav", "video": "tests/data/draw.mp4"}
QUESTION = {"type": "text", "text": "What is it?"}
TOKENS = 8
CLOSE = 1e-3


def post(server: Server, body: bytes) -> Any:
    request = urllib.request.Request(f"{server.url}/v1/chat/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def read(server: Server, body: dict[str, Any] | bytes) -> tuple[list[str], list[float], dict[str, int]]:
    """Tokens and log-probabilities of the answer, and the tokens of the prompt by kind."""
    answer = post(server, body if isinstance(body, bytes) else json.dumps(body).encode())
    tokens = answer["choices"][0]["logprobs"]["content"]
    usage = answer["usage"]
    details = {kind: usage["prompt_tokens_details"][f"{kind}_tokens"] for kind in FILES}
    return (
        [token["token"] for token in tokens],
        [token["logprob"] for token in tokens],
        details | {"all": usage["prompt_tokens"]},
    )


def asking(*parts: Any, **fields: Any) -> dict[str, Any]:
    common = {"max_tokens": TOKENS, "logprobs": True, "ignore_eos": True, "skip_special_tokens": False}
    return {"messages": [{"role": "user", "content": [*parts, QUESTION]}]} | common | fields


def assert_same(server: Server, form: dict[str, Any] | bytes, plain: Any) -> None:
    tokens, logprobs, usage = read(server, form)
    assert (tokens, usage) == (plain[0], plain[2])
    assert logprobs == pytest.approx(plain[1], abs=CLOSE)


def part(kind: str) -> dict[str, Any]:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": FILES[kind]}}


@pytest.fixture(scope="module")
def plain(server: Server) -> dict[str, Any]:
    """For each kind of media, the answer to a request that is written in the plainest way."""
    return {kind: read(server, asking(part(kind))) for kind in FILES}


def in_lines(text: str) -> str:
    return "\r\n".join(text[begin : begin + 76] for begin in range(0, len(text), 76))


def forms(kind: str, data: bytes) -> Iterator[dict[str, Any]]:
    text = base64.b64encode(data).decode()
    other = text.replace("+", "-").replace("/", "_").rstrip("=")
    yield {"type": kind, kind: FILES[kind]}
    yield {"type": f"{kind}_url", f"{kind}_url": FILES[kind]}
    yield {"type": kind, kind: f"data:{kind}/x;base64,{in_lines(other)}", "cache_control": {"type": "ephemeral"}}
    yield {"type": "file", "file": {"file_data": text, "filename": "x"}}
    yield {"type": "file", "file": {"file_data": f"data:{kind}/x;base64,{text}", "file_id": None}}
    if kind == "image":
        yield {"type": "input_image", "image_url": FILES[kind], "detail": "auto"}
    if kind == "audio":
        yield {"type": "input_audio", "input_audio": {"data": text}}
        yield {"type": "input_audio", "input_audio": {"data": f"data:audio/x-wav;base64,{text}", "format": "X-WAV"}}
        yield {"type": "input_audio", "input_audio": {"data": in_lines(other), "format": "audio/mpeg"}}


@pytest.mark.parametrize("kind", FILES)
def test_every_form_of_a_part_is_heard_and_seen_alike(
    server: Server, repository: Path, plain: dict[str, Any], kind: str
) -> None:
    for form in forms(kind, (repository / FILES[kind]).read_bytes()):
        assert_same(server, asking(form), plain[kind])


def test_the_whole_request_in_other_words(server: Server, plain: dict[str, Any]) -> None:
    body = asking(part("image") | {"index": 0, "id": "x", "unknown": None}, max_tokens=float(TOKENS))
    assert_same(server, b"\xef\xbb\xbf" + json.dumps(body).encode(), plain["image"])
    assert_same(server, asking(part("image"), top_p=0, temperature=1.5), plain["image"])
    assert_same(server, asking(extra_body={"images": [FILES["image"]]}), plain["image"])
    assert_same(server, asking(part("image"), chat_template_kwargs={"enable_thinking": False}), plain["image"])


CLIP = {"type": "video", "video": FILES["video"]}


def test_options_of_a_clip_are_those_of_the_request(server: Server) -> None:
    """The clip has a sound track, so its sound counts too."""
    asked = {"video_fps": 1, "video_max_pixels": 50_176, "use_audio_in_video": True}
    options = {"fps": 1.0, "max_pixels": 50_176, "use_audio_in_video": True}
    expected = read(server, asking(CLIP, **asked))
    assert expected[2] != read(server, asking(CLIP))[2]
    assert_same(server, asking(CLIP | options), expected)
    assert_same(server, asking(CLIP, mm_processor_kwargs=options), expected)


def test_options_of_one_clip_do_not_change_another(server: Server) -> None:
    slow, small = {"fps": 1}, {"fps": 2, "max_pixels": 50_176}
    both = read(server, asking(CLIP | slow, CLIP | small))
    assert_same(server, asking(CLIP, CLIP | small | {"max_pixels": 50_176}, video_fps=1), both)
    assert_same(server, asking(CLIP | slow | {"max_pixels": 2_000_000_000}, CLIP, video_max_pixels=50_176), both)
    alone = [read(server, asking(CLIP | options))[2]["video"] for options in (slow, small)]
    assert both[2]["video"] == sum(alone)


def test_options_of_one_picture_do_not_change_another(server: Server, plain: dict[str, Any]) -> None:
    picture = {"type": "image", "image": FILES["image"]}
    small = read(server, asking(picture | {"max_pixels": 30_000}))
    assert small[2]["image"] < plain["image"][2]["image"]
    both = read(server, asking(picture | {"max_pixels": 30_000}, picture))
    assert both[2]["image"] == small[2]["image"] + plain["image"][2]["image"]
    assert_same(server, asking(picture, mm_processor_kwargs={"max_pixels": 30_000}), small)
    assert_same(server, asking(images=[FILES["image"]], mm_processor_kwargs={"max_pixels": 30_000}), small)


@pytest.mark.parametrize(
    "bounds", [{"max_pixels": 30_000}, {"min_pixels": 300_000}, {"min_pixels": 1, "max_pixels": 1}]
)
def test_a_picture_within_bounds_is_the_references(
    server: Server, tiny_checkpoint: Path, repository: Path, bounds: dict[str, int]
) -> None:
    reference = Reference(tiny_checkpoint)
    images = reference.processor.image_processor
    least, most = images.size["shortest_edge"], images.size["longest_edge"]
    most = bounds.get("max_pixels", max(most, bounds.get("min_pixels", 0)))
    images.size = {"shortest_edge": bounds.get("min_pixels", min(least, most)), "longest_edge": most}
    message = {"role": "user", "content": [{"type": "image", "image": str(repository / FILES["image"])}, QUESTION]}
    truth = reference.greedy(Conversation("bounds", [message]), TOKENS)
    body = asking({"type": "image", "image": FILES["image"]} | bounds, return_token_ids=True, ignore_eos=False)
    ids = post(server, json.dumps(body).encode())["choices"][0]["token_ids"]
    at = differs(ids, truth)
    assert at is None or truth.margins[at] < NEAR_TIE


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"min_pixels": 50_437_058}, "messages[0].content[0].image", "image_too_large"),
        ({"mm_processor_kwargs": {"min_pixels": 12_845_057}}, "images[0]", "image_too_large"),
        ({"mm_processor_kwargs": {"min_pixels": 12_845_057}}, "videos[0]", "video_too_large"),
        ({"video_min_pixels": 2**31 - 1}, "videos[0]", "video_too_large"),
    ],
)
def test_a_picture_that_would_be_too_large_is_refused_before_it_is_resized(
    server: Server, body: dict[str, Any], param: str, code: str
) -> None:
    """Encoding this picture would take minutes, and all other pictures would wait during this time."""
    kind, listed, _ = param.partition("[0]")
    if listed and kind != "messages":
        asked = asking(**body, **{kind: [FILES[kind.removesuffix("s")]]})
    else:
        asked = asking({"type": "image", "image": FILES["image"]} | body)
    status, answer = server.post(asked)
    error = answer["error"]
    assert (status, error["code"], error["param"]) == (400, code, param)
    assert "12845056 are allowed" in error["message"]
