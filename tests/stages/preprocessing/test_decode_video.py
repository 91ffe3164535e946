"""Clips of every format give the reference's frames. A bad clip is refused with the right error code."""

import io
from collections.abc import Callable

import av
import numpy
import pytest
from conversations import all_frames
from hostile_pictures import progressive
from media_files import clip_file, image_file, moving_pictures, picture, sound_file, tone
from PIL import Image
from transformers import Qwen3OmniMoeProcessor
from transformers.video_utils import VideoMetadata

from omni_pipeline.errors import ErrorInfo, OmniError
from stages.preprocessing.container import MAX_STREAMS, open_container
from stages.preprocessing.decode_video import DecodedClip, decode_frames, probe_clip, sampled_frames

SIZES = {"max_pixels": 200_000, "max_total_pixels": 5_000_000}
LIMITS = {"max_seconds": 60, **SIZES, "param": "media[0]"}
FORMATS = [
    ("mp4", "mpeg4"), ("mp4", "libx264"), ("mov", "libx264"), ("matroska", "libx264"), ("webm", "libvpx"),
    ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("mpegts", "mpeg2video"), ("gif", "gif"),
]  # fmt: skip


def frames_of(data: bytes, indices: list[int], at_once: int = 4) -> numpy.ndarray:
    total = probe_clip(data, **LIMITS).frames
    return numpy.concatenate(
        list(decode_frames(data, indices, at_once=at_once, total=total, **SIZES, param="media[0]"))
    )


def refused(data: bytes) -> ErrorInfo:
    with pytest.raises(OmniError) as caught:
        frames_of(data, list(range(probe_clip(data, **LIMITS).frames)))
    return caught.value.info


def refused_unseen(data: bytes) -> ErrorInfo:
    """The error for a clip that is refused before any frame is decoded."""
    with pytest.raises(OmniError) as caught:
        probe_clip(data, **LIMITS)
    return caught.value.info


def rotated(mp4: bytes, quarter_turns: int) -> bytes:
    """The same file, marked to be shown with clockwise quarter turns, as in clips from phones."""
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns % 4]
    matrix = [cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    at = mp4.index(b"tkhd") + 4 + 40  # the matrix comes after version, flags, times, id, duration, layer and volume
    packed = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    return mp4[:at] + packed + mp4[at + 36 :]


def header_first(mp4: bytes) -> bytes:
    """The same file with the index before the frames, as usual on the web."""
    media, index = mp4.index(b"mdat") - 4, mp4.index(b"moov") - 4
    header = bytearray(mp4[index:])
    table = header.index(b"stco") + 8
    for entry in range(int.from_bytes(header[table : table + 4], "big")):
        place = slice(table + 4 + 4 * entry, table + 8 + 4 * entry)
        header[place] = (int.from_bytes(header[place], "big") + len(header)).to_bytes(4, "big")
    return mp4[:media] + bytes(header) + mp4[media:index]


@pytest.mark.parametrize(("format", "codec"), FORMATS)
def test_every_format_is_counted_and_decoded(format: str, codec: str) -> None:
    rate = 25 if codec == "mpeg2video" else 5
    data = clip_file(9, rate=rate, format=format, codec=codec, width=128, height=96)
    clip = probe_clip(data, **LIMITS)
    assert (clip.frames, clip.width, clip.height, clip.has_sound) == (9, 128, 96, False)
    assert clip.rate == pytest.approx(rate)
    expected = all_frames(data)[0].permute(0, 2, 3, 1).numpy()
    assert numpy.array_equal(frames_of(data, [0, 3, 4, 8]), expected[[0, 3, 4, 8]])


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_frames_come_in_pieces_of_the_size_asked_for(at_once: int) -> None:
    data = clip_file(7)
    pieces = list(decode_frames(data, [0, 2, 3, 5, 6], at_once=at_once, total=7, **SIZES, param=""))
    assert max(map(len, pieces)) <= at_once
    assert numpy.array_equal(numpy.concatenate(pieces), frames_of(data, [0, 2, 3, 5, 6]))


@pytest.mark.parametrize("total", [2, 3, 4, 5, 7, 16, 31, 100, 1000, 4801])
@pytest.mark.parametrize("rate", [4.0, 23.976, 30.0, 59.94])
@pytest.mark.parametrize("fps", [0.5, 1.0, 2.0, 3.7])
def test_the_same_frames_are_taken_as_by_the_reference(
    processor: Qwen3OmniMoeProcessor, total: int, rate: float, fps: float
) -> None:
    reference = processor.video_processor
    metadata = VideoMetadata(total_num_frames=total, fps=rate, duration=total / rate)
    for most in (768, 30, 7):
        taken = sampled_frames(
            DecodedClip(total, rate, 64, 64, False),
            fps=fps,
            min_frames=reference.min_frames,
            max_frames=most,
            multiple=2,
        )
        expected = reference.sample_frames(metadata, fps=fps, max_frames=most).tolist()
        # The reference may round an index past the last frame.
        assert taken == [index for index in expected if index < total]


def test_of_a_single_frame_that_frame_is_taken() -> None:
    assert sampled_frames(DecodedClip(1, 25.0, 64, 64, False), fps=2.0, min_frames=4, max_frames=768, multiple=2) == [0]


def test_a_variable_frame_rate_is_measured_where_the_header_is_wrong() -> None:
    clip = probe_clip(clip_file(5, rate=100, format="matroska", times=[0, 10, 90, 100, 400]), **LIMITS)
    assert (clip.frames, clip.rate, clip.seconds) == (5, pytest.approx(1.0), pytest.approx(5.0))


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_clips_are_turned_as_the_file_says(quarter_turns: int) -> None:
    data = clip_file(4)
    turned = frames_of(rotated(data, quarter_turns), [0])
    assert numpy.array_equal(turned[0], numpy.rot90(frames_of(data, [0])[0], -quarter_turns))


def test_decoded_frames_look_like_what_was_recorded() -> None:
    recorded = numpy.stack(moving_pictures(6)).astype(int)
    assert numpy.abs(frames_of(clip_file(6, codec="libx264"), list(range(6))) - recorded).mean() < 12


def test_sound_is_noticed() -> None:
    assert probe_clip(clip_file(4, sound=tone(1)), **LIMITS).has_sound


def of_jpegs(*pictures: bytes, format: str = "avi", width: int = 64, height: int = 48, empty: int = 0) -> bytes:
    """A clip of these JPEG files. The clip claims the size `width`×`height`. If `empty` is not 0, a second stream has
    `empty` almost empty packets.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        streams = [container.add_stream("mjpeg", rate=10) for _ in range(2 if empty else 1)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        packets = [(streams[0], time, data) for time, data in enumerate(pictures)]
        packets += [(streams[-1], time, b"\0") for time in range(empty)]
        for stream, time, data in sorted(packets, key=lambda entry: entry[1]):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts = stream, time, time
            container.mux(packet)
    return file.getvalue()


def jpeg(width: int, height: int) -> bytes:
    return image_file(Image.new("RGB", (width, height)), "JPEG")


def growing() -> bytes:
    """A clip whose frames get much larger after the first."""
    return of_jpegs(jpeg(64, 48), jpeg(2000, 1600), jpeg(2000, 1600), jpeg(2000, 1600))


def claiming(width: int, height: int) -> bytes:
    """A clip whose frames claim this size, but have almost no data."""
    data = bytearray(jpeg(64, 48))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return of_jpegs(*[bytes(data)] * 4)


def cut_webm() -> bytes:
    data = clip_file(40, format="webm", codec="libvpx")
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"", "invalid_video", id="empty"),
        pytest.param(b"not a video" * 50, "invalid_video", id="text"),
        pytest.param(clip_file(12)[:4000], "invalid_video", id="truncated mp4"),
        pytest.param(sound_file(tone(1)), "invalid_video", id="a sound"),
        pytest.param(image_file(picture(), "PNG"), "invalid_video", id="a picture"),
        pytest.param(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", "invalid_video", id="playlist"),
        pytest.param(clip_file(2, width=640, height=480), "video_too_large", id="large frames"),
        pytest.param(clip_file(2, width=2400, height=8), "invalid_video", id="very wide"),
        pytest.param(clip_file(50, width=640, height=300), "video_too_large", id="many large frames"),
        pytest.param(growing(), "invalid_video", id="later frames larger"),
        pytest.param(claiming(60_000, 60_000), "video_too_large", id="frames that claim to be huge"),
        pytest.param(cut_webm(), "invalid_video", id="truncated webm"),
        pytest.param(clip_file(70, rate=1, width=16, height=16), "video_too_long", id="long"),
    ],
)
def test_what_cannot_be_watched_is_refused(data: bytes, code: str) -> None:
    info = refused(data)
    assert (info.status, info.code, info.param) == (400, code, "media[0]")


@pytest.mark.parametrize("format", ["avi", "mov", "matroska"])
def test_frames_of_many_scans_are_refused_undecoded(format: str) -> None:
    frames = [progressive(400, 300, 700)] * 2
    info = refused_unseen(of_jpegs(*frames, format=format, width=400, height=300))
    assert (info.status, info.code, info.param) == (400, "video_too_large", "media[0]")


@pytest.mark.parametrize("format", ["avi", "mov", "matroska"])
@pytest.mark.parametrize("is_progressive", [False, True])
def test_frames_of_usual_scans_are_read(format: str, is_progressive: bool) -> None:
    shown = [picture(200, 160, seed) for seed in range(9)]
    files = [image_file(image, "JPEG", progressive=is_progressive) for image in shown]
    data = of_jpegs(*files, format=format, width=200, height=160)
    expected = all_frames(data)[0].permute(0, 2, 3, 1).numpy()
    assert numpy.array_equal(frames_of(data, [0, 3, 8]), expected[[0, 3, 8]])


def of_streams(count: int, format: str) -> bytes:
    """A clip of one frame in each of many streams."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        for _ in range(count):
            stream = container.add_stream("mjpeg", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for stream in container.streams:
            packet = av.Packet(jpeg(64, 48))
            packet.stream, packet.pts, packet.dts = stream, 0, 0
            container.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize("format", ["avi", "mov", "matroska"])
def test_no_more_than_some_dozens_of_streams_are_examined(format: str) -> None:
    assert len(frames_of(of_streams(MAX_STREAMS, format), [0])) == 1
    try:
        with open_container(of_streams(MAX_STREAMS + 1, format), param="media[0]", code="invalid_video") as container:
            assert len(container.streams) == MAX_STREAMS
            assert format == "matroska"  # only for this format, FFmpeg itself leaves out further streams
    except OmniError as error:
        assert (error.info.status, error.info.code, error.info.param) == (400, "invalid_video", "media[0]")  # noqa: PT017
        assert str(MAX_STREAMS) in error.info.message  # noqa: PT017


def test_very_many_almost_empty_packets_are_refused_undecoded() -> None:
    assert frames_of(of_jpegs(jpeg(64, 48), empty=1000), [0]).shape == (1, 48, 64, 3)
    info = refused_unseen(of_jpegs(jpeg(64, 48), empty=5000))
    assert (info.status, info.code, info.param) == (400, "video_too_large", "media[0]")


def test_frames_that_are_larger_than_the_header_says_are_charged_as_they_are() -> None:
    data = clip_file(60)
    total = 96 * 64 * 10
    with pytest.raises(OmniError) as caught:
        list(
            decode_frames(data, [59], at_once=1, total=60, max_pixels=200_000, max_total_pixels=total, param="media[0]")
        )
    assert (caught.value.info.status, caught.value.info.code) == (400, "video_too_large")


def test_a_truncated_clip_whose_header_comes_first_is_refused() -> None:
    data = header_first(clip_file(12))
    assert probe_clip(data, **LIMITS).frames == 12
    info = refused(data[: len(data) // 2])
    assert (info.status, info.code) == (400, "invalid_video")
    assert "cut short" in info.message


@pytest.mark.parametrize(
    ("format", "codec"), [("mp4", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4"), ("gif", "gif")]
)
def test_damage_anywhere_is_an_error_of_the_request(
    format: str, codec: str, damaged: Callable[[bytes], list[bytes]]
) -> None:
    for data in damaged(clip_file(4, format=format, codec=codec)):
        try:
            frames_of(data, [0, 1, 2, 3])
        except OmniError as error:
            assert error.info.status == 400  # noqa: PT017 (whether it is refused depends on the damage)
