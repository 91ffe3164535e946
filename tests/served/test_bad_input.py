"""Bad input makes only its own request fail. The error has a 4xx status and explains what to change."""

from __future__ import annotations

import base64
import http.client
import http.server
import io
import json
import os
import re
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy
import pytest
import soundfile
from PIL import Image

from tests.served.conftest import MAX_MEDIA, MAX_MEDIUM_BYTES
from tests.served.streams import stream, text_of
from tests.server import Server, fused

# --- the table --------------------------------------------------------------------------------------------------------

JSON = {"content-type": "application/json"}
CARS, SPEECH, CLIP = "tests/data/cars.jpg", "tests/data/query_to_cars.wav", "tests/data/draw.mp4"


@dataclass(frozen=True)
class Bad:
    """A bad request, and the error that it must get. `message` is a regular expression that must match a part of the
    error message.
    """

    body: dict[str, Any] | bytes
    code: str
    param: str | None
    message: str
    status: int = 400
    headers: dict[str, str] = field(default_factory=lambda: JSON)

    def payload(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def body(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4} | fields


def turn(**message: Any) -> dict[str, Any]:
    return body(messages=[message])


def part(**content: Any) -> dict[str, Any]:
    return turn(role="user", content=[content])


def image_url(url: str) -> dict[str, Any]:
    return part(type="image_url", image_url={"url": url})


IMAGE_URL = "messages[0].content[0].image_url.url"


def raw(data: bytes, code: str, message: str, status: int = 400, **headers: str) -> Bad:
    """A request that is wrong as a whole, and not only in one field."""
    return Bad(
        data, code, None, message, status, JSON | {name.replace("_", "-"): value for name, value in headers.items()}
    )


def wrong(param: str, message: str, code: str = "invalid_value", **fields: Any) -> Bad:
    """A request in which the field `param` has an invalid value."""
    return Bad(body(**fields), code, param, message)


BODIES = {
    "nothing": raw(b"", "invalid_json", "not valid JSON"),
    "no JSON": raw(b"hello", "invalid_json", "not valid JSON"),
    "half a JSON": raw(b'{"messages": [', "invalid_json", "truncated"),
    "not UTF-8": raw(b'{"model": "\xff\xfe"}', "invalid_json", "not valid JSON"),
    "half a character": raw(b'{"model": "\\ud800"}', "invalid_json", "half of a surrogate pair"),
    "NaN": raw(b'{"temperature": NaN}', "invalid_json", "not valid JSON"),
    "infinity": raw(b'{"temperature": 1e999}', "invalid_json", "out of range"),
    "a list": raw(b"[]", "invalid_json", "must be a JSON object"),
    "null": raw(b"null", "invalid_json", "must be a JSON object"),
    "nested deeply": raw(b"[" * 100_000, "invalid_json", "nested too deeply|not valid JSON"),
    "a form": raw(b"messages=hi", "invalid_content_type", "application/json", 415,
                  content_type="application/x-www-form-urlencoded"),
    "compressed": raw(b"\x1f\x8b", "invalid_content_encoding", "compressed", 415, content_encoding="gzip"),
    "empty object": Bad({}, "missing_required_parameter", "messages", "Missing required field 'messages'"),
}  # fmt: skip

CALL = "messages[0].tool_calls[0]"


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def called(arguments: str) -> Any:
    """A request with an earlier call."""
    return turn(role="assistant", tool_calls=[{"id": "x", "function": {"name": "f", "arguments": arguments}}])


FIELDS = {
    "unknown": wrong("temprature", r"Unknown field 'temprature' \(did you mean 'temperature'\?\)",
                     "unknown_parameter", temprature=1),
    "unknown in a message": Bad(turn(role="user", content="x", images=[CARS]), "unknown_parameter",
                                "messages[0].images", "Unknown field"),
    "unknown in a part": Bad(part(type="image_url", image_url={"uri": CARS}), "unknown_parameter",
                             "messages[0].content[0].image_url.uri", "known: detail, format, url"),
    "unknown stage": wrong("stage_sampling.thinkr", "did you mean 'thinker'", "unknown_parameter",
                           stage_sampling={"thinkr": {}}),
    "hot talker": wrong("stage_sampling.talker_ar.temperature", "<= 2",
                        stage_sampling={"talker_ar": {"temperature": 3}}),
    "no messages": wrong("messages", "length >= 1", messages=[]),
    "messages as text": wrong("messages", "expected `array`, got `str`", messages="Hello"),
    "message as text": wrong("messages[0]", "expected `object`, got `str`", messages=["Hello"]),
    "no role": Bad(turn(content="x"), "missing_required_parameter", "messages[0].role", "Missing"),
    "no such role": Bad(turn(role="robot", content="x"), "invalid_value", "messages[0].role", "known: system"),
    "no content": Bad(turn(role="user"), "missing_required_parameter", "messages[0].content", "Missing"),
    "content of a wrong type": Bad(turn(role="user", content=5), "invalid_value", "messages[0].content", "got `int`"),
    "no such part": Bad(part(type="smell", smell=CARS), "invalid_value", "messages[0].content[0].type", "image_url"),
    "part without its content": Bad(part(type="image_url"), "missing_required_parameter",
                                    "messages[0].content[0].image_url", "Missing"),
    "empty address": Bad(image_url(""), "invalid_value", IMAGE_URL, "length >= 1"),
    "address of a wrong type": wrong("images[0]", "expected `str`, got `int`", images=[1]),
    "media not in a list": wrong("images", "expected `array", images=CARS),
    "media without a user": Bad(body(messages=[{"role": "system", "content": "x"}], images=[CARS]), "invalid_value",
                                "images", "need a user message"),
    "temperature as text": wrong("temperature", "got `str`", temperature="hot"),
    "temperature too high": wrong("temperature", "<= 2", temperature=2.1),
    "temperature too low": wrong("temperature", ">= 0", temperature=-1),
    "top_p of nothing": wrong("top_p", ">= 0", top_p=-0.1),
    "top_k too low": wrong("top_k", ">= -1", top_k=-2),
    "min_p too high": wrong("min_p", "<= 1", min_p=1.5),
    "repetition_penalty of nothing": wrong("repetition_penalty", ">= 0.01", repetition_penalty=0),
    "presence_penalty too high": wrong("presence_penalty", "<= 2", presence_penalty=3),
    "max_tokens of nothing": wrong("max_tokens", ">= 1", max_tokens=0),
    "max_tokens with a fraction": wrong("max_tokens", "got `float`", max_tokens=1.5),
    "max_tokens beyond numbers": wrong("max_tokens", "<= 2147483647", max_tokens=2**31),
    "two limits": wrong("max_completion_tokens", "send only one of these two fields", max_completion_tokens=5),
    "min above max": wrong("min_tokens", "larger than the maximum number of tokens", min_tokens=5),
    "seed beyond 64 bits": wrong("seed", "9223372036854775807", seed=2**63),
    "too many choices": wrong("n", "<= 16", n=17),
    "no choice": wrong("n", ">= 1", n=0),
    "half a choice": wrong("n", "int", n=1.5),
    "speech": wrong("modalities", "does not speak", "unsupported_value", modalities=["text", "audio"]),
    "tool without a function": wrong("tools[0].function", "Missing", "missing_required_parameter",
                                     tools=[{"type": "function"}]),
    "tool of another kind": wrong("tools[0].type", "known: function", tools=[{"type": "web_search"}]),
    "tool with a bad name": wrong("tools[0].function.name", "regex", tools=[tool("get weather")]),
    "two tools of one name": wrong("tools[1].function.name", "another tool", tools=[tool("f"), tool("f")]),
    "too many tools": wrong("tools", "length <= 128", tools=[tool(f"f{index}") for index in range(129)]),
    "tool with a schema that is no object": wrong("tools[0].function.parameters", "got `array`",
                                                  tools=[tool("f", parameters=[])]),
    "required tool with a schema that cannot be used": wrong(
        "tools", "nonsense", "invalid_grammar", tools=[tool("f", parameters={"type": "nonsense"})],
        tool_choice="required"),
    "choice without tools": wrong("tool_choice", "together with 'tools'", tool_choice="required"),
    "choice of no tool": wrong("tool_choice.function.name", "no such tool", tools=[tool("f")],
                               tool_choice={"type": "function", "function": {"name": "g"}}),
    "no such choice": wrong("tool_choice", "known: none, auto, required", tools=[tool("f")], tool_choice="any"),
    "functions of old": wrong("functions", "use 'tools'", "unsupported_parameter", functions=[{"name": "f"}]),
    "arguments that are not JSON": Bad(called("{"), "invalid_value", f"{CALL}.function.arguments", "JSON object"),
    "arguments that are no object": Bad(called("[1]"), "invalid_value", f"{CALL}.function.arguments", "JSON object"),
    "arguments that are too deep": Bad(called('{"a":' * 70 + "1" + "}" * 70), "invalid_value",
                                       f"{CALL}.function.arguments", "too deeply"),
    "call without a function": Bad(turn(role="assistant", tool_calls=[{"id": "x"}]), "missing_required_parameter",
                                   f"{CALL}.function", "Missing"),
    "call of old": Bad(turn(role="assistant", content="x", function_call={"name": "f"}), "unsupported_parameter",
                       "messages[0].function_call", "use 'tool_calls'"),
    "tools beyond the context": wrong("messages", "maximum context length is", "context_length_exceeded",
                                      tools=[tool("f", description="one two three " * 40_000)]),
    "empty stop": wrong("stop", "length >= 1", stop=""),
    "too many stops": wrong("stop", "length <= 16", stop=["a"] * 17),
    "top_logprobs alone": wrong("top_logprobs", "needs 'logprobs'", top_logprobs=2),
    "too many top_logprobs": wrong("top_logprobs", "<= 20", logprobs=True, top_logprobs=21),
    "stream_options alone": wrong("stream_options", "needs 'stream'", stream_options={"include_usage": True}),
    "bias on a word": wrong("logit_bias", "token ids", logit_bias={"hello": 1}),
    "bias beyond the vocabulary": wrong("logit_bias", "no token 999999", logit_bias={"999999": 1}),
    "stop token beyond the vocabulary": wrong("stop_token_ids", "no token 999999", stop_token_ids=[999_999],
                                              min_tokens=2),
    "video_fps of nothing": wrong("video_fps", ">= 0.01", video_fps=0, videos=[CLIP]),
    "video pixels crossed": wrong("video_min_pixels", "larger than 'video_max_pixels'", videos=[CLIP],
                                  video_min_pixels=10_000, video_max_pixels=5_000),
    "prompt beyond the context": wrong("messages", "maximum context length is", "context_length_exceeded",
                                       messages=[{"role": "user", "content": "one two three " * 40_000}]),
}  # fmt: skip

ADDRESSES = {
    "no such file": Bad(body(images=["tests/data/no.jpg"]), "media_not_found", "images[0]", "not a readable file"),
    "a directory": Bad(body(images=["tests/data"]), "media_not_found", "images[0]", "not a readable file"),
    "a FIFO": Bad(body(images=["fifo"]), "media_not_found", "images[0]", "not a readable file"),
    "a socket": Bad(body(images=["socket"]), "media_not_found", "images[0]", "not a readable file"),
    "zero in a path": Bad(body(images=["a\0b"]), "media_not_found", "images[0]", "not a readable file"),
    "up and out": Bad(body(images=["tests/../../x.jpg"]), "media_not_allowed", "images[0]", "outside the directory"),
    "out by root": Bad(body(audios=["/etc/passwd"]), "media_not_allowed", "audios[0]", "outside the directory"),
    "out by file URL": Bad(body(videos=["file:///etc/passwd"]), "media_not_allowed", "videos[0]", "outside"),
    "out by escapes": Bad(body(videos=["file:///%65tc/passwd"]), "media_not_allowed", "videos[0]", "outside"),
    "out by symlink": Bad(image_url("outside.jpg"), "media_not_allowed", IMAGE_URL, "outside"),
    "out by symlinked directory": Bad(image_url("root/etc/passwd"), "media_not_allowed", IMAGE_URL, "outside"),
    "file on another host": Bad(image_url("file://host/x.jpg"), "media_not_allowed", IMAGE_URL, "empty or localhost"),
    "no such scheme": Bad(image_url("ftp://example.org/x.jpg"), "invalid_url", IMAGE_URL, "http:, https:, data:"),
    "URL without a host": Bad(image_url("http:///x.jpg"), "invalid_url", IMAGE_URL, "not a usable URL"),
    "URL with a password": Bad(image_url("http://a:b@example.org/"), "invalid_url", IMAGE_URL, "password"),
    "URL with a space": Bad(image_url("http://example.org/a b"), "invalid_url", IMAGE_URL, "space"),
    "loopback": Bad(image_url("http://127.0.0.1/x.jpg"), "media_not_allowed", IMAGE_URL, "public internet"),
    "loopback by name": Bad(image_url("http://localhost/x.jpg"), "media_not_allowed", IMAGE_URL, "public internet"),
    "loopback in IPv6": Bad(image_url("http://[::1]/x.jpg"), "media_not_allowed", IMAGE_URL, "public internet"),
    "loopback in disguise": Bad(image_url("http://[::ffff:127.0.0.1]/"), "media_not_allowed", IMAGE_URL, "public"),
    "loopback in decimal": Bad(image_url("http://2130706433/x.jpg"), "invalid_url", IMAGE_URL, "usual notation"),
    "cloud metadata": Bad(image_url("http://169.254.169.254/latest/"), "media_not_allowed", IMAGE_URL, "public"),
    "private": Bad(image_url("http://10.0.0.1/x.jpg"), "media_not_allowed", IMAGE_URL, "public internet"),
    "private, IPv6": Bad(image_url("http://[fd00::1]/x.jpg"), "media_not_allowed", IMAGE_URL, "public internet"),
    "mail port": Bad(image_url("http://example.org:25/"), "media_not_allowed", IMAGE_URL, "port 25"),
    "no base64": Bad(image_url("data:image/png;base64,!!!!"), "invalid_base64", IMAGE_URL, "not valid base64"),
    "cut base64": Bad(image_url("data:image/png;base64,AAAAA"), "invalid_base64", IMAGE_URL, "not valid base64"),
    "no base64 sound": Bad(part(type="input_audio", input_audio={"data": "ü", "format": "wav"}), "invalid_base64",
                           "messages[0].content[0].input_audio.data", "not valid base64"),
    "a document": Bad(part(type="file", file={"file_data": "data:application/pdf;base64,JVBERi0xLjcK"}),
                      "unsupported_value", "messages[0].content[0].file.file_data", "be a picture, a sound or a clip"),
    "a file by id": Bad(part(type="file", file={"file_id": "file-1"}), "unsupported_parameter",
                        "messages[0].content[0].file.file_id", "does not store files"),
    "a file by URL": Bad(part(type="file", file={"file_data": "https://example.org/x.png"}), "unsupported_value",
                         "messages[0].content[0].file.file_data", "send any other URL as 'image_url'"),
    "data URL without base64": Bad(image_url("data:image/png,abc"), "invalid_url", IMAGE_URL, "data:TYPE;base64,DATA"),
    "data URL without data": Bad(image_url("data:image/png;base64"), "invalid_url", IMAGE_URL, "data:TYPE;base64"),
    "data URL of nothing": Bad(image_url("data:image/png;base64,"), "invalid_image", IMAGE_URL, "is empty"),
    "too many": Bad(body(images=[CARS] * (MAX_MEDIA + 1)), "too_many_media", f"images[{MAX_MEDIA}]", "allows 6"),
    "too large": Bad(body(videos=["large"]), "media_too_large", "videos[0]", f"the {MAX_MEDIUM_BYTES} bytes", 413),
    "the second of two": Bad(body(images=[CARS, "no.jpg"]), "media_not_found", "images[1]", r"'images\[1\]'"),
}  # fmt: skip

# --- media that cannot be decoded -------------------------------------------------------------------------------------

Maker: TypeAlias = Callable[[], bytes]


@dataclass(frozen=True)
class BadMedium:
    """A bad file that is sent as media of this kind, and the error that the request must get."""

    kind: str
    make: Maker
    message: str
    code: str = ""

    def expected(self, path: str) -> Bad:
        code = self.code or f"invalid_{self.kind}"
        return Bad(body(**{f"{self.kind}s": [path]}), code, f"{self.kind}s[0]", self.message)


DATA = Path(__file__).parents[1] / "data"


def committed(name: str) -> bytes:
    return (DATA / name).read_bytes()


def picture(kind: str, size: tuple[int, int] = (64, 64)) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(file, kind)
    return file.getvalue()


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG whose header claims this size; `pixels` may be of another size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def sound(kind: str, subtype: str | None = None, value: float | None = None) -> bytes:
    file = io.BytesIO()
    samples = numpy.random.default_rng(0).normal(0, 0.1, 16_000) if value is None else numpy.full(16_000, value)
    soundfile.write(file, samples, 16_000, format=kind, subtype=subtype)
    return file.getvalue()


def clip(kind: str, codec: str, size: tuple[int, int] = (64, 48)) -> bytes:
    """Two seconds of noise without a sound track."""
    rng = numpy.random.default_rng(0)
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for _ in range(20):
            pixels = rng.integers(0, 255, (size[1], size[0], 3), numpy.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    return file.getvalue()


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def holed(data: bytes) -> bytes:
    """`data`, with the middle third replaced by zeros."""
    third = len(data) // 3
    return data[:third] + bytes(third) + data[2 * third :]


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def gif(width: int, height: int) -> bytes:
    """An animated GIF whose header claims this canvas size."""
    return patched(clip("gif", "gif"), 6, struct.pack("<HH", width, height))


MEDIA = {
    "no picture at all": BadMedium("image", lambda: b"hello", "damaged, or its format is not one of JPEG, PNG"),
    "zero bytes of picture": BadMedium("image", lambda: b"", "is empty"),
    "SVG": BadMedium("image", lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not one of JPEG, PNG"),
    "EPS": BadMedium("image", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not one of JPEG, PNG"),
    **{f"half a {kind}": BadMedium("image", lambda kind=kind: half(picture(kind)), "image is damaged")  # type: ignore[misc]
       for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")},
    **{f"head of a {kind}": BadMedium("image", lambda kind=kind: picture(kind)[:10], "damaged")  # type: ignore[misc]
       for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")},
    "PNG with a hole": BadMedium("image", lambda: holed(picture("PNG")), "image is damaged"),
    "PNG without pixels": BadMedium("image", lambda: png(0, 0), "damaged"),
    "decompression bomb": BadMedium("image", lambda: png(30_000, 30_000, bytes(1 << 24)),
                                    r"too large: .* 67108864 pixels that are allowed\.$", "image_too_large"),
    "PNG of 9000×9000": BadMedium("image", lambda: png(9_000, 9_000), "it has 9000×9000 pixels", "image_too_large"),
    "PNG of 2³¹×2³¹": BadMedium("image", lambda: png(2**31 - 1, 2**31 - 1), "far more", "image_too_large"),
    "very wide": BadMedium("image", lambda: picture("PNG", (2_010, 10)), "2010×10 pixels is not supported: one side"),
    "very tall": BadMedium("image", lambda: picture("PNG", (10, 2_010)), "10×2010 pixels is not supported: one side"),
    "sound as picture": BadMedium("image", lambda: committed("query_to_cars.wav"), "not one of JPEG, PNG"),
    "clip as picture": BadMedium("image", lambda: committed("draw.mp4"), "not one of JPEG, PNG"),

    "no sound at all": BadMedium("audio", lambda: b"hello", "damaged or of an unknown format"),
    "zero bytes of sound": BadMedium("audio", lambda: b"", "is empty"),
    "half a wav": BadMedium("audio", lambda: half(sound("WAV")), "cut short"),
    "half a flac": BadMedium("audio", lambda: half(sound("FLAC")), "cut short"),
    "half a Vorbis": BadMedium("audio", lambda: half(sound("OGG", "VORBIS")), "no sound"),
    "half an m4a": BadMedium("audio", lambda: half(committed("draw.mp4")), "damaged|cut short"),
    **{f"head of a {kind}": BadMedium("audio", lambda kind=kind: sound(kind)[:20], "damaged")  # type: ignore[misc]
       for kind in ("WAV", "FLAC", "OGG", "MP3")},
    "flac with a hole": BadMedium("audio", lambda: holed(sound("FLAC")), "damaged|cut short"),
    "mp3 with a hole": BadMedium("audio", lambda: holed(sound("MP3")), "damaged"),
    "wav of 4 GB": BadMedium("audio", lambda: patched(committed("query_to_cars.wav"), 40, b"\xf0\xff\xff\xff"),
                             "less data than its header states"),
    "wav of nothing": BadMedium("audio", lambda: committed("query_to_cars.wav")[:44], "cut short"),
    "wav at 0 Hz": BadMedium("audio", lambda: patched(sound("WAV"), 24, bytes(4)), "audio"),
    "wav at 4 GHz": BadMedium("audio", lambda: patched(sound("WAV"), 24, b"\xff" * 4), "audio"),
    "wav of no channels": BadMedium("audio", lambda: patched(sound("WAV"), 22, bytes(2)), "audio"),
    "wav of 65535 channels": BadMedium("audio", lambda: patched(sound("WAV"), 22, b"\xff\xff"), "audio"),
    "wav of NaN": BadMedium("audio", lambda: sound("WAV", "FLOAT", float("nan")), "not a number"),
    "wav of infinity": BadMedium("audio", lambda: sound("WAV", "FLOAT", float("inf")), "infinite"),
    "picture as sound": BadMedium("audio", lambda: committed("cars.jpg"), "damaged or of an unknown format"),
    "silent clip as sound": BadMedium("audio", lambda: clip("mp4", "libx264"), "has no sound"),
    "playlist as sound": BadMedium("audio", lambda: b"#EXTM3U\nhttp://169.254.169.254/\n", "unknown format"),

    "no clip at all": BadMedium("video", lambda: b"hello", "damaged or of an unknown format"),
    "zero bytes of clip": BadMedium("video", lambda: b"", "is empty"),
    "half an mp4": BadMedium("video", lambda: half(committed("draw.mp4")), "cut short"),
    "half an avi": BadMedium("video", lambda: half(clip("avi", "mpeg4")), "damaged|cut short"),
    **{f"head of a {kind}": BadMedium("video", lambda kind=kind, codec=codec: clip(kind, codec)[:20], "damaged")  # type: ignore[misc]
       for kind, codec in (("mp4", "libx264"), ("matroska", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4"))},
    "mp4 with a hole": BadMedium("video", lambda: holed(clip("mp4", "libx264")), "damaged"),
    "clip of 5000×5000": BadMedium("video", lambda: gif(5_000, 5_000),
                                   "frame of the video has 5000×5000 pixels, but only 16777216 are", "video_too_large"),
    "clip of 65535×65535": BadMedium("video", lambda: gif(65_535, 65_535), "no frames"),
    "very wide clip": BadMedium("video", lambda: clip("mp4", "libx264", (3_300, 16)), "one side may be at most"),
    "picture as clip": BadMedium("video", lambda: committed("cars.jpg"), "damaged or of an unknown format"),
    "sound as clip": BadMedium("video", lambda: committed("query_to_cars.wav"), "has no video"),
    "list of files as clip": BadMedium("video", lambda: b"ffconcat version 1.0\nfile /etc/passwd\n", "unknown format"),
    "playlist as clip": BadMedium("video", lambda: b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "unknown format"),
}  # fmt: skip


# --- the tests --------------------------------------------------------------------------------------------------------

NEIGHBOUR = body(max_tokens=24, ignore_eos=True, images=[CARS])


@pytest.fixture(scope="module", autouse=True)
def _traps(repository: Path) -> Iterator[None]:
    """Adds bad entries to the media directory: entries that are not media, and links that lead out of the directory."""
    (repository / "large").write_bytes(bytes(MAX_MEDIUM_BYTES + 1))
    (repository / "outside.jpg").symlink_to("/etc/passwd")
    (repository / "root").symlink_to("/")
    os.mkfifo(repository / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(repository)  # the path of a Unix socket must be short, so a relative path is used
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        yield


@pytest.fixture(scope="module")
def alone(server: Server) -> str:
    """The answer to the request `NEIGHBOUR` when no other request is in progress."""
    with stream(server, NEIGHBOUR) as events:
        return text_of(events)


def send(server: Server, bad: Bad) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    try:
        connection.request("POST", "/v1/chat/completions", bad.payload(), bad.headers)
        response = connection.getresponse()
        return response.status, json.load(response)
    finally:
        connection.close()


def check(server: Server, bad: Bad, alone: str) -> None:
    """Send `bad` while the answer to `NEIGHBOUR` is streamed. `bad` must get its error, and `NEIGHBOUR` must get its
    usual answer.
    """
    with stream(server, NEIGHBOUR) as events:
        next(events)
        status, answer = send(server, bad)
        assert text_of(events) == alone
    error = answer["error"]
    assert (status, error["code"], error["param"]) == (bad.status, bad.code, bad.param), error
    assert error["type"] == "invalid_request_error"
    assert re.search(bad.message, error["message"]), error
    assert error["message"].endswith(".")
    assert not error["message"].endswith("..")
    assert "Traceback" not in error["message"]


def test_the_table_is_long_enough() -> None:
    assert len(BODIES | FIELDS) + len(ADDRESSES) + len(MEDIA) >= 60


@pytest.mark.parametrize("name", BODIES)
def test_body(server: Server, alone: str, name: str) -> None:
    check(server, BODIES[name], alone)


@pytest.mark.parametrize("name", FIELDS)
def test_field(server: Server, alone: str, name: str) -> None:
    check(server, FIELDS[name], alone)


@pytest.mark.parametrize("name", ADDRESSES)
def test_address(server: Server, alone: str, name: str) -> None:
    check(server, ADDRESSES[name], alone)


@pytest.mark.parametrize("name", MEDIA)
def test_medium(server: Server, alone: str, repository: Path, name: str) -> None:
    medium = MEDIA[name]
    (repository / "medium").write_bytes(medium.make())
    check(server, medium.expected("medium"), alone)


def test_bad_medium_beside_good_ones_is_named(server: Server, alone: str) -> None:
    content = [
        {"type": "image_url", "image_url": {"url": CARS}},
        {"type": "text", "text": "and"},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"hello").decode(), "format": "wav"}},
        {"type": "video_url", "video_url": {"url": CLIP}},
    ]
    param = "messages[0].content[2].input_audio.data"
    check(server, Bad(turn(role="user", content=content), "invalid_audio", param, "damaged"), alone)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/completions", 404, "not_found"),
        ("GET", "/v1/models/gpt-5", 404, "model_not_found"),
        ("GET", "/../../etc/passwd", 404, "not_found"),
    ],
)
def test_path(server: Server, method: str, path: str, status: int, code: str) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        assert (response.status, json.load(response)["error"]["code"]) == (status, code)
    finally:
        connection.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the beginning of TLS
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 20_000 + b"\r\n\r\n",
    ],
    ids=["garbage", "TLS", "negative length", "broken chunk", "long header"],
)
def test_what_is_no_http_is_refused(server: Server, request_bytes: bytes) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request_bytes)
        status = int(connection.makefile("rb").readline().split()[1])
        assert status == (431 if b"X-Long" in request_bytes else 400)
    assert server.healthy()


def test_afterwards_no_stage_holds_a_request(server: Server) -> None:
    """The test sends a last request through every stage, and then reads the numbers of requests from the workers'
    heartbeats.
    """
    before = {name: stage["received"] for name, stage in server.health()[1]["stages"].items()}
    status, _ = server.post(body(images=[CARS], audios=[SPEECH]))
    assert status == 200

    def beaten() -> bool:
        stages = server.health()[1]["stages"]
        return all(
            stages[name]["received"] > count and not stages[name]["live_requests"] for name, count in before.items()
        )

    server.until(beaten, 5)


# --- remote media -----------------------------------------------------------------------------------------------------


class _Site(http.server.BaseHTTPRequestHandler):
    """A web site on which most downloads fail in some way. ``/to/URL`` redirects to URL."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self._answer(302, Location=self.path.removeprefix("/to/"))
        elif self.path == "/loop":
            self._answer(302, Location="/loop")
        elif self.path == "/cars.jpg":
            self._answer(200, committed("cars.jpg"))
        elif self.path == "/cut.jpg":
            self._answer(200, committed("cars.jpg"), Content_Length="1000000")
        elif self.path == "/claim.jpg":
            self._answer(200, b"", Content_Length="4294967296")
        elif self.path == "/gzip.jpg":
            self._answer(200, b"", Content_Encoding="gzip")
        elif self.path == "/endless.jpg":
            self._answer(200)
            try:
                while True:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                pass  # the server has stopped reading
        else:
            self._answer(404)

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Keep the log lines out of the tests' output."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of a running `_Site`, as ``host:port``."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def fetching_server(tiny_checkpoint: Path, repository: Path, site: str) -> Iterator[Server]:
    """A server that may fetch media from `site`, and from no other host."""
    media = {"allowed_domains": [site], "max_bytes": MAX_MEDIUM_BYTES, "max_redirects": 3}
    server = Server(tiny_checkpoint, repository, fused() | {"server": {"media": media}}).start()
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def alone_there(fetching_server: Server) -> str:
    with stream(fetching_server, NEIGHBOUR) as events:
        return text_of(events)


@pytest.mark.parametrize("path", ["/cars.jpg", "/to//cars.jpg"], ids=["straight", "redirected"])
def test_remote_picture_is_the_local_one(fetching_server: Server, site: str, path: str) -> None:
    answers = [fetching_server.post(body(images=[address])) for address in (CARS, f"http://{site}{path}")]
    assert [status for status, _ in answers] == [200, 200]
    assert answers[0][1]["choices"] == answers[1][1]["choices"]


@pytest.mark.parametrize(
    ("path", "code", "message", "status"),
    [
        ("/to/http://169.254.169.254/latest/meta-data/", "media_not_allowed", "not among the hosts", 400),
        ("/to/http://localhost:9/x.jpg", "media_not_allowed", "not among the hosts", 400),
        ("/to/http://127.0.0.1:9/x.jpg", "media_not_allowed", "not among the hosts", 400),
        ("/to/file:///etc/passwd", "invalid_url", "only http and https", 400),
        ("/to/http://u:p@{site}/cars.jpg", "invalid_url", "password", 400),
        ("/loop", "media_fetch_failed", "more than 3 redirects", 400),
        ("/no.jpg", "media_fetch_failed", "status 404", 400),
        ("/gzip.jpg", "media_fetch_failed", "compressed", 400),
        ("/cut.jpg", "media_fetch_failed", "ClientPayloadError", 400),
        ("/claim.jpg", "media_too_large", "larger than the 4194304 bytes", 413),
        ("/endless.jpg", "media_too_large", "larger than the 4194304 bytes", 413),
    ],
)
def test_download(
    fetching_server: Server, alone_there: str, site: str, path: str, code: str, message: str, status: int
) -> None:
    address = f"http://{site}{path.format(site=site)}"
    check(fetching_server, Bad(body(images=[address]), code, "images[0]", message, status), alone_there)
