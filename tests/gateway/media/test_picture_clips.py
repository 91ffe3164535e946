"""A clip may be sent as pictures: as a list of addresses, or as a data URL with commas."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.api.conversion import MediaSource
from gateway.bodies.json_body import LongString
from gateway.media.loading import MediaLoader
from omni_pipeline.config.schema import MediaPolicy
from omni_pipeline.errors import ErrorInfo, OmniError
from stages.messages import Media, VideoOptions
from tests.gateway.media.test_loading import encoded, long_string
from tests.gateway.scripted import ScriptedPipeline, serving

JPEG = b"\xff\xd8\xff\xe0"
FRAMES = [JPEG + bytes([number]) * (5 + number) for number in range(3)]
LARGE = [JPEG + bytes([number]) * 1_500_000 for number in range(2)]
PARAM = "messages[0].content[0].video"


def url_of(frames: list[bytes], head: str = "data:video/jpeg;base64,") -> str:
    return head + ",".join(map(encoded, frames))


def list_of(addresses: list[str], fps: float | None = None) -> MediaSource:
    frames = tuple(MediaSource("image", address, f"{PARAM}[{index}]") for index, address in enumerate(addresses))
    video = None if fps is None else VideoOptions(fps=fps)
    return MediaSource("video", "", PARAM, frames=frames, video=video)


async def load(*sources: MediaSource, charged: list[int] | None = None, **policy: Any) -> list[Media]:
    policy.setdefault("local_path", "")
    loader = MediaLoader(MediaPolicy(**policy), total_bytes=10_000_000)
    return await loader.load(sources, ([] if charged is None else charged).append, client="a client")


async def refused(*sources: MediaSource, **options: Any) -> ErrorInfo:
    with pytest.raises(OmniError) as caught:
        await load(*sources, **options)
    return caught.value.info


def frames_of(media: Media) -> list[bytes]:
    assert media.kind == "video"
    assert media.data.nbytes == 0
    return [bytes(frame.buffer()) for frame in media.frames]


@pytest.mark.parametrize("frames", [FRAMES, LARGE, FRAMES[:1]], ids=["short", "large", "one"])
@pytest.mark.parametrize("head", ["data:video/jpeg;base64,", "DATA:Video/JPEG;x=1;Base64,"])
@pytest.mark.parametrize("form", [str, long_string, lambda text: LongString(0, bytearray(text.encode()), False)])
async def test_a_data_url_with_commas_is_cut_into_pictures(frames: list[bytes], head: str, form: Any) -> None:
    charged: list[int] = []
    [media] = await load(MediaSource("video", form(url_of(frames, head)), "videos[0]"), charged=charged)
    assert frames_of(media) == frames
    assert (media.param, media.video) == ("videos[0]", None)
    assert sum(charged) == media.nbytes == sum(map(len, frames))


async def test_a_list_may_mix_addresses_of_every_kind(tmp_path: Any) -> None:
    (tmp_path / "1.jpg").write_bytes(FRAMES[1])
    addresses = [url_of(FRAMES[:1], "data:image/jpeg;base64,"), "1.jpg", f"file://{tmp_path}/1.jpg"]
    [media] = await load(list_of(addresses, 3.0), local_path=str(tmp_path), max_items=1)
    assert frames_of(media) == [FRAMES[0], FRAMES[1], FRAMES[1]]
    assert (media.param, media.video) == (PARAM, VideoOptions(fps=3.0))


async def test_the_order_of_clips_and_other_media_is_kept() -> None:
    picture = MediaSource("image", url_of(FRAMES[:1], "data:;base64,"), "images[0]")
    addresses = [url_of([frame], "data:;base64,") for frame in FRAMES]
    media = await load(picture, list_of(addresses), picture, list_of(addresses[::-1]))
    assert [item.kind for item in media] == ["image", "video", "image", "video"]
    assert (frames_of(media[1]), frames_of(media[3])) == (FRAMES, FRAMES[::-1])


async def test_a_file_with_a_wrong_type_is_still_a_file() -> None:
    [media] = await load(MediaSource("video", url_of([b"\0\0\0\x18ftypmp42"]), "videos[0]"))
    assert (bytes(media.data.buffer()), media.frames) == (b"\0\0\0\x18ftypmp42", [])


@pytest.mark.parametrize(
    ("source", "code", "param"),
    [
        (MediaSource("video", url_of(FRAMES).replace(",/", ",,/"), "videos[0]"), "invalid_video", "videos[0]"),
        (MediaSource("video", url_of(FRAMES) + ",", "videos[0]"), "invalid_video", "videos[0]"),
        (MediaSource("video", url_of(FRAMES) + ",AAAAA", "videos[0]"), "invalid_base64", "videos[0]"),
        (MediaSource("video", url_of(FRAMES, "data:video/mp4;base64,"), "videos[0]"), "invalid_base64", "videos[0]"),
        (MediaSource("image", url_of(FRAMES), "images[0]"), "invalid_base64", "images[0]"),
        (list_of(["data:;base64,AAAA", "data:;base64,"]), "invalid_image", f"{PARAM}[1]"),
        (list_of(["data:;base64,AAAA", "http://127.0.0.1/"]), "media_not_allowed", f"{PARAM}[1]"),
        (list_of(["/etc/passwd"]), "media_not_allowed", f"{PARAM}[0]"),
        (list_of([url_of(FRAMES)]), "invalid_base64", f"{PARAM}[0]"),
    ],
)
async def test_what_is_not_a_clip_of_pictures_is_refused(source: MediaSource, code: str, param: str) -> None:
    info = await refused(source)
    assert (info.status, info.code, info.param) == (400, code, param)


@pytest.mark.parametrize(
    "source",
    [MediaSource("video", url_of(FRAMES), PARAM), list_of([url_of([frame], "data:;base64,") for frame in FRAMES])],
    ids=["data URL", "list"],
)
async def test_pictures_are_bounded(source: MediaSource) -> None:
    """Three things are limited: the number of pictures, the size of each picture, and the size of all pictures."""
    largest, total = max(map(len, FRAMES)), sum(map(len, FRAMES))
    assert len((await load(source, max_frames=3, max_bytes=largest, max_items=1))[0].frames) == 3
    charged: list[int] = []
    info = await refused(source, max_frames=2, charged=charged)
    assert (info.status, info.code, info.param, charged) == (400, "video_too_many_frames", PARAM, [])
    info = await refused(source, max_bytes=largest - 1)
    assert (info.status, info.code) == (413, "media_too_large")
    loader = MediaLoader(MediaPolicy(local_path=""), total_bytes=total - 1)
    with pytest.raises(OmniError, match="larger than"):
        await loader.load([source], lambda size: None, client="a client")


async def test_every_form_reaches_the_pipeline_as_the_same_frames() -> None:
    pipeline = ScriptedPipeline(["x"])
    one_by_one = [url_of([frame], "data:image/jpeg;base64,") for frame in LARGE]
    bodies = [
        {"messages": [{"role": "user", "content": "?"}], "videos": [url_of(LARGE)]},
        *(
            {"messages": [{"role": "user", "content": [part]}]}
            for part in (
                {"type": "video_url", "video_url": {"url": url_of(LARGE)}},
                {"type": "video", "video": one_by_one},
                {"type": "video", "video": one_by_one, "fps": 1},
            )
        ),
    ]
    async with serving(pipeline) as served:
        for body in bodies:
            assert (await served.post(body))[0] == 200
        escaped = json.dumps(bodies[1]).replace("/", "\\/").encode()
        assert (await served.post(escaped))[0] == 200
    asked = [request.media for key, request in pipeline.bodies.items() if not key.startswith("warm-up")]
    assert [frames_of(media) for [media] in asked] == [LARGE] * 5
    assert [media.video and media.video.fps for [media] in asked] == [None, None, None, 1.0, None]


@pytest.mark.parametrize(
    ("part", "param", "code"),
    [
        ({"video": []}, "messages[0].content[0].video", "invalid_value"),
        ({"video": [3]}, "messages[0].content[0].video[0]", "invalid_value"),
        ({"video": ["data:;base64,AAAA"], "fps": 0}, "messages[0].content[0].fps", "invalid_value"),
        ({"video": ["data:;base64,AAAA"], "fbs": 1}, "messages[0].content[0].fbs", "unknown_parameter"),
        ({"video": ["data:;base64,AAAA", "data:;base64,A"]}, "messages[0].content[0].video[1]", "invalid_base64"),
    ],
)
async def test_a_wrong_list_is_refused_by_field(part: dict[str, Any], param: str, code: str) -> None:
    async with serving(ScriptedPipeline(["x"])) as served:
        body = {"messages": [{"role": "user", "content": [{"type": "video"} | part]}]}
        status, answer = await served.post(body)
    error = answer["error"]
    assert (status, error["code"]) == (400, code)
    assert error["param"].replace("[...]", "[0]") == param
