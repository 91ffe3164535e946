"""Tests that the media of a request are loaded from every kind of source."""

from __future__ import annotations

import base64
import json
import tracemalloc

import pytest

from gateway.api.conversion import MediaSource
from gateway.bodies.json_body import LongString
from gateway.media.loading import MediaLoader
from omni_pipeline.config.schema import MediaPolicy
from omni_pipeline.errors import OmniError, bad_request
from stages.messages import PictureSize, VideoOptions

LARGE = bytes(range(256)) * 12_000  # 3 MB: several slices of base64


class Loader(MediaLoader):
    """A loader whose `hold` refuses nothing."""

    async def load(self, sources, hold=lambda size: None, client="a client"):
        return await super().load(sources, hold, client=client)


def loader(root="", total_bytes=10_000_000, **policy) -> Loader:
    return Loader(MediaPolicy(local_path=str(root), **policy), total_bytes=total_bytes)


def source(value, index=0, kind="image", form="address") -> MediaSource:
    return MediaSource(kind, value, f"{kind}s[{index}]", form=form)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def content(loading) -> list[bytes]:
    return [bytes(media.data.buffer()) for media in await loading]


async def refused(loading):
    with pytest.raises(OmniError) as caught:
        await loading
    return caught.value.info


@pytest.mark.parametrize("data", [b"a", b"ab", b"abc", LARGE, LARGE + b"x"])
async def test_a_data_url_is_decoded(data):
    assert await content(loader().load([source(f"data:image/png;base64,{encoded(data)}")])) == [data]


def long_string(text: str) -> LongString:
    """A long string that the body reader has stored separately, with the JSON escapes that some clients write."""
    content = text.encode().replace(b"/", b"\\/").replace(b"+", b"\\u002b")
    return LongString(0, bytearray(content), b"\\" in content)


@pytest.mark.parametrize("data", [b"a", b"\xfb\xff\xbe" * 5, LARGE, LARGE + b"x"])
async def test_a_long_string_is_decoded(data):
    url = long_string(f"data:image/png;base64,{encoded(data)}")
    plain = LongString(0, bytearray(encoded(data).encode()), False)
    assert await content(loader().load([source(url), source(plain, form="base64")])) == [data, data]


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("data:image/png;base64", "invalid_url"),
        ("data:text/plain,hello", "invalid_url"),
        ("data:image/png;base64,", "invalid_image"),
        ("data:image/png;base64,AAAAA", "invalid_base64"),
        ("data:image/png;base64,AA==AAAA", "invalid_base64"),
        ("data:image/png;base64,AAAA\\u0000", "invalid_base64"),
        ("data:image/png;base64,AAAA" + "/" * 5 + "\\q", "invalid_base64"),
        ("data:image/png;base64,AAAA\\ud800", "invalid_base64"),
        ("data:image/png;base64,ÄÄÄÄ", "invalid_base64"),
    ],
)
async def test_a_long_string_that_is_no_medium_is_refused(value, code):
    string = LongString(0, bytearray(value.encode()), "\\" in value)
    info = await refused(loader().load([source(string)]))
    assert (info.status, info.code, info.param) == (400, code, "images[0]")


@pytest.mark.parametrize("form", ["address", "base64"])
async def test_a_long_string_has_the_size_limit_of_its_file(form):
    text = encoded(b"x" * 3000)
    string = long_string(text if form == "base64" else f"data:;base64,{text}")
    assert await content(loader(max_bytes=3000).load([source(string, form=form)])) == [b"x" * 3000]
    info = await refused(loader(max_bytes=2999).load([source(string, form=form)]))
    assert (info.status, info.code) == (413, "media_too_large")


@pytest.mark.parametrize("prefix", ["data:;base64,", "DATA:image/png;BASE64,", "data:audio/x;codecs=1;base64,"])
async def test_the_media_type_of_a_data_url_does_not_matter(prefix):
    assert await content(loader().load([source(prefix + encoded(b"abc"))])) == [b"abc"]


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("data:image/png;base64", "invalid_url"),
        ("data:,hello", "invalid_url"),
        ("data:text/plain,hello", "invalid_url"),
        ("data:" + "x" * 5000 + ";base64,AAAA", "invalid_url"),
        ("/9j/" + "A" * 4092, "invalid_url"),
        ("/9j/" + "A" * 4091, "media_not_allowed"),
        ("data:image/png;base64,", "invalid_image"),
        ("data:image/png;base64,A", "invalid_base64"),
        ("data:image/png;base64,AAAAA", "invalid_base64"),
        ("data:image/png;base64,AA=", "invalid_base64"),
        ("data:image/png;base64,A===", "invalid_base64"),
        ("data:image/png;base64,=", "invalid_base64"),
        ("data:image/png;base64,AA=A", "invalid_base64"),
        ("data:image/png;base64,AA==A", "invalid_base64"),
        ("data:image/png;base64,AA== AAAA", "invalid_base64"),
        ("data:image/png;base64,AA==AAAA", "invalid_base64"),
        ("data:image/png;base64,AAAA====", "invalid_base64"),
        ("data:image/png;base64,AA\0AA", "invalid_base64"),
        ("data:image/png;base64,AA\xa0AA", "invalid_base64"),
        ("data:image/png;base64,AA.AA", "invalid_base64"),
        ("data:image/png;base64, \r\n", "invalid_image"),
        ("data:image/png;base64,ÄÄÄÄ", "invalid_base64"),
        ("data:image/png;base64," + "A" * ((1 << 20) - 2) + "==" + "AAAA", "invalid_base64"),
        ("ftp://example.org/x", "invalid_url"),
        ("javascript:alert(1)", "invalid_url"),
        ("http://127.0.0.1/", "media_not_allowed"),
        ("file://other.example/x", "media_not_allowed"),
        ("file:///etc/passwd", "media_not_allowed"),
        ("file:///x%00y", "media_not_found"),
        ("file://[/x", "invalid_url"),
        ("/etc/passwd", "media_not_allowed"),
        ("missing.png", "media_not_found"),
    ],
)
async def test_a_medium_that_cannot_be_had_is_refused(value, code, tmp_path):
    info = await refused(loader(tmp_path).load([source(value)]))
    assert (info.status, info.param, info.code) == (400, "images[0]", code)


def in_lines(text: str, width: int = 76) -> str:
    return "\r\n".join(text[begin : begin + width] for begin in range(0, len(text), width)) + "\r\n"


FORMS = {
    "unpadded": lambda text: text.rstrip("="),
    "URL-safe": lambda text: text.replace("+", "-").replace("/", "_"),
    "in lines": in_lines,
    "in lines of odd length": lambda text: in_lines(text, 77),
    "all of it": lambda text: in_lines(text.replace("+", "-").replace("/", "_").rstrip("="), 64),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("data", [b"a", b"\xfb\xff\xbe" * 5 + b"xy", LARGE, LARGE + b"x", LARGE + b"xy"])
async def test_base64_is_taken_in_every_form_that_clients_send(form, data):
    text = FORMS[form](encoded(data))
    long = json.dumps(text)[1:-1].encode().replace(b"/", b"\\/")
    sources = [
        source(f"data:image/png;base64,{text}"),
        source(text, form="base64"),
        source(LongString(0, bytearray(long), b"\\" in long), form="base64"),
        source(LongString(0, bytearray(b"data:image\\/png;base64," + long), True)),
    ]
    assert await content(loader(max_bytes=len(data), total_bytes=4 * len(data)).load(sources)) == [data] * 4
    for one in sources:
        info = await refused(loader(max_bytes=len(data) - 1).load([one]))
        assert (info.status, info.code) == (413, "media_too_large")


async def test_escaped_base64_is_never_copied_as_a_whole():
    """The decoded bytes are in a buffer that grows by an eighth when it is full. So the peak of the memory is only a
    little larger than the file.
    """
    text = in_lines(encoded(LARGE * 4)).replace("\r\n", "\\r\\n")
    string = LongString(0, bytearray(text.encode()), True)
    tracemalloc.start()
    [medium] = await loader(total_bytes=len(LARGE) * 4).load([source(string, form="base64")])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert medium.data.nbytes == len(LARGE) * 4
    assert peak < 1.2 * medium.data.nbytes + 8 * (1 << 20)


async def test_input_audio_is_plain_base64():
    assert await content(loader().load([source(encoded(b"RIFF"), kind="audio", form="base64")])) == [b"RIFF"]
    info = await refused(loader().load([source("data:audio/wav;base64,AAAA", kind="audio", form="base64")]))
    assert info.code == "invalid_base64"


async def test_local_paths_and_file_urls_are_read(tmp_path):
    (tmp_path / "a b.png").write_bytes(b"picture")
    sources = [source("a b.png"), source(f"file://{tmp_path}/a%20b.png"), source(f"file://localhost{tmp_path}/a b.png")]
    assert await content(loader(tmp_path).load(sources)) == [b"picture"] * 3


async def test_the_order_of_many_media_is_kept(tmp_path):
    for index in range(30):
        (tmp_path / str(index)).write_bytes(b"%d" % index)
    sources = [source(str(i) if i % 2 else f"data:;base64,{encoded(b'%d' % i)}", i) for i in range(30)]
    assert await content(loader(tmp_path).load(sources)) == [b"%d" % index for index in range(30)]


async def test_kind_and_field_are_kept():
    [media] = await loader().load([source("data:;base64,AAAA", 3, kind="video")])
    assert (media.kind, media.param, media.data.dtype, media.data.shape) == ("video", "videos[3]", "uint8", (3,))
    assert (media.size, media.video) == (None, None)


async def test_options_are_kept():
    url, size, video = "data:;base64,AAAA", PictureSize(max_pixels=9), VideoOptions(fps=1)
    sources = [MediaSource("image", url, "a", size=size), MediaSource("video", url, "b", video=video)]
    assert [(media.size, media.video) for media in await loader().load(sources)] == [(size, None), (None, video)]


async def test_the_number_of_media_is_bounded():
    sources = [source("data:;base64,AAAA", index) for index in range(3)]
    assert len(await loader(max_items=3).load(sources)) == 3
    info = await refused(loader(max_items=2).load(sources))
    assert (info.status, info.param, info.code) == (400, "images[2]", "too_many_media")


async def test_the_size_of_one_medium_is_bounded_before_it_is_decoded():
    text = f"data:;base64,{encoded(LARGE)}"
    tracemalloc.start()
    info = await refused(loader(max_bytes=len(LARGE) - 1).load([source(text)]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (info.status, info.code) == (413, "media_too_large")
    assert peak < 500_000


async def test_the_size_of_all_media_together_is_bounded():
    sources = [source(f"data:;base64,{encoded(bytes(100))}", index) for index in range(3)]
    assert len(await loader(total_bytes=300).load(sources)) == 3
    info = await refused(loader(total_bytes=299).load(sources))
    assert (info.status, info.code) == (413, "media_too_large")


async def test_the_size_of_a_file_is_bounded(tmp_path):
    (tmp_path / "a").write_bytes(b"picture")
    assert await content(loader(tmp_path, max_bytes=7).load([source("a")])) == [b"picture"]
    info = await refused(loader(tmp_path, max_bytes=6).load([source("a")]))
    assert (info.status, info.code) == (413, "media_too_large")


@pytest.mark.parametrize("kind", ["data URL", "base64", "file"])
async def test_each_piece_is_charged_before_the_next_is_read(tmp_path, kind):
    """This test covers all sources except downloads. Downloads have their own tests, with a server that sends
    pieces.
    """
    size = 5_000_000
    (tmp_path / "large").write_bytes(bytes(size))
    wanted = {
        "data URL": source(f"data:;base64,{encoded(bytes(size))}"),
        "base64": source(encoded(bytes(size)), form="base64"),
        "file": source("large"),
    }[kind]
    charged: list[int] = []
    await loader(tmp_path).load([wanted], charged.append)
    assert (sum(charged), max(charged) <= 1 << 20) == (size, True)

    left = 2_500_000
    kept: list[int] = []

    def hold(count: int) -> None:
        if sum(kept) + count > left:
            raise bad_request("No more room.", code="full")
        kept.append(count)

    assert (await refused(loader(tmp_path).load([wanted], hold))).code == "full"
    assert left - (1 << 20) < sum(kept) <= left
