"""Makes small intact files of every container and codec that the server reads, for the fuzzer to damage."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import av
import numpy
import soundfile
from msgspec import Struct
from PIL import Image

from fuzzing.odd_files import EMPTY_TRACKS, TAGS, clip, deep_pictures, sound_file, transparent_pictures, unsized_sounds

RATE = 16_000


class Seed(Struct, frozen=True):
    """One intact file.

    Attributes:
        kind: ``image``, ``audio`` or ``video``.
        name: The container and the codec of the file.
    """

    kind: str
    name: str
    data: bytes


_IMAGES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO")
_IMAGE_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG progressive": ("JPEG", {"progressive": True}),
    "PNG palette": ("PNG", {}),
    "WEBP lossless": ("WEBP", {"lossless": True}),
    "TIFF deflate": ("TIFF", {"compression": "tiff_deflate"}),
    "TIFF jpeg": ("TIFF", {"compression": "jpeg"}),
    "GIF animated": ("GIF", {"save_all": True}),
    "WEBP animated": ("WEBP", {"save_all": True}),
}

# Format and subtype of each sound that libsndfile writes.
_SOUNDS = (
    ("WAV", "PCM_16"), ("WAV", "PCM_U8"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"),
    ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"),
    ("AU", "PCM_16"), ("CAF", "PCM_16"), ("W64", "PCM_16"), ("RF64", "PCM_16"), ("VOC", "PCM_16"), ("NIST", "PCM_16"),
    ("SVX", "PCM_16"), ("IRCAM", "PCM_16"), ("PAF", "PCM_16"), ("SDS", "PCM_16"), ("AVR", "PCM_16"), ("MAT5", "PCM_16"),
)  # fmt: skip
# Container, codec and sampling rate of each sound that FFmpeg writes.
_SOUND_CONTAINERS = (
    ("mp4", "aac", RATE), ("adts", "aac", RATE), ("webm", "libopus", 48_000), ("matroska", "flac", RATE),
    ("ogg", "flac", RATE), ("ogg", "libvorbis", RATE), ("mp3", "libmp3lame", RATE), ("ac3", "ac3", 48_000),
    ("eac3", "eac3", 48_000), ("asf", "wmav2", RATE), ("caf", "alac", RATE), ("mov", "pcm_s16le", RATE),
    ("wav", "adpcm_ms", RATE), ("mpegts", "mp2", RATE), ("avi", "mp2", 48_000), ("flv", "aac", 44_100),
)  # fmt: skip
_CLIPS = (
    ("mp4", "libx264", "yuv420p"), ("mp4", "libx265", "yuv420p"), ("mp4", "mpeg4", "yuv420p"),
    ("mov", "mjpeg", "yuvj420p"),
    ("matroska", "libx264", "yuv420p"), ("webm", "libvpx", "yuv420p"), ("webm", "libvpx-vp9", "yuv420p"),
    ("webm", "libaom-av1", "yuv420p"), ("avi", "mpeg4", "yuv420p"), ("avi", "mjpeg", "yuvj420p"),
    ("mpegts", "mpeg2video", "yuv420p"), ("mpegts", "libx264", "yuv420p"), ("mpeg", "mpeg1video", "yuv420p"),
    ("flv", "flv", "yuv420p"), ("gif", "gif", "rgb8"), ("asf", "wmv2", "yuv420p"), ("ivf", "libvpx", "yuv420p"),
    ("3gp", "mpeg4", "yuv420p"), ("ogg", "libtheora", "yuv420p"), ("mov", "qtrle", "rgb24"), ("mov", "png", "rgb24"),
    ("matroska", "ffv1", "yuv420p"), ("avi", "huffyuv", "yuv422p"), ("matroska", "rawvideo", "yuv420p"),
)  # fmt: skip


def seeds() -> list[Seed]:
    """One file of each format. Formats that the installed libraries cannot write are left out."""
    made = [Seed("image", name, _image(name)) for name in (*_IMAGES, *_IMAGE_VARIANTS)]
    for container, subtype in _SOUNDS:
        made += _if_possible("audio", f"{container} {subtype}", partial(_sound, container, subtype))
    for container, codec, rate in _SOUND_CONTAINERS:
        made += _if_possible("audio", f"{container} {codec}", partial(_sound_in, container, codec, rate))
    for container, codec, pixels in _CLIPS:
        made += _if_possible("video", f"{container} {codec}", partial(_clip, container, codec, pixels))
    made += _if_possible("video", "mp4 with sound", lambda: _clip("mp4", "libx264", "yuv420p", "aac"))
    made += _if_possible("video", "webm with sound", lambda: _clip("webm", "libvpx", "yuv420p", "libopus"))
    return made + _odd_files()


def _odd_files() -> list[Seed]:
    """The intact but unusual files that the functions of `odd_files` make."""
    pixels = _pixels()[..., 0]
    sound = _tone(RATE)[: RATE // 5]
    made = [Seed("image", name, data) for name, data in transparent_pictures(pixels > 128).items()]
    made += [Seed("image", name, data) for name, data in deep_pictures(pixels).items()]
    made += [Seed("audio", name, data) for name, data in unsized_sounds(sound).items()]
    for container in ("WAV", "AIFF", "FLAC", "OGG", "MP3"):
        made.append(Seed("audio", f"{container} joined", sound_file(sound, container) * 3))
    for name, tag in TAGS.items():
        made.append(Seed("audio", f"MP3 joined with {name}", tag.join([sound_file(sound, "MP3")] * 3)))
    for name, how in EMPTY_TRACKS.items():
        made.append(Seed("video", f"{name} with an empty track", clip(**how)))
    made.append(Seed("video", "mp4 joined", clip("mp4") * 2))
    made.append(Seed("video", "mkv with late sound", clip("matroska", sound_codec="aac", sounds=[sound], begins=0.5)))
    return made


def _if_possible(kind: str, name: str, make: Callable[[], bytes]) -> list[Seed]:
    try:
        return [Seed(kind, name, make())]
    except (av.error.FFmpegError, soundfile.LibsndfileError, ValueError, TypeError):
        return []


def _pixels(number: int = 0) -> numpy.ndarray:
    y, x = numpy.mgrid[0:48, 0:64]
    return numpy.stack([4 * x, 5 * y, 16 * ((x + y + 3 * number) % 16)], -1).astype(numpy.uint8)


def _image(name: str) -> bytes:
    kind, options = _IMAGE_VARIANTS.get(name, (name, {}))
    picture = Image.fromarray(_pixels())
    if name == "PNG palette":
        picture = picture.convert("P")
    if "save_all" in options:
        options = options | {"append_images": [Image.fromarray(_pixels(number)) for number in range(1, 4)]}
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _tone(rate: int) -> numpy.ndarray:
    times = numpy.arange(rate // 2) / rate
    return (0.3 * numpy.sin(2 * numpy.pi * (220 + 200 * times) * times)).astype(numpy.float32)


def _sound(container: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, _tone(RATE), RATE, format=container, subtype=subtype)
    return file.getvalue()


def _sound_in(container: str, codec: str, rate: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        _add_sound(output, codec, rate)
    return file.getvalue()


def _add_sound(output: av.container.OutputContainer, codec: str, rate: int) -> None:
    stream = output.add_stream(codec, rate=rate)
    stream.layout = "mono"
    frame = av.AudioFrame.from_ndarray(_tone(rate)[None, :], format="flt", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    fifo = av.AudioFifo()
    for part in av.AudioResampler(format=stream.format, layout="mono", rate=rate).resample(frame):
        fifo.write(part)
    size = stream.codec_context.frame_size or 1024
    while (part := fifo.read(size, partial=True)) is not None:
        output.mux(stream.encode(part))
    output.mux(stream.encode(None))


def _clip(container: str, codec: str, pixels: str, sound_codec: str = "") -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25 if container == "mpeg" else 8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        stream.options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        for number in range(8):
            frame = av.VideoFrame.from_ndarray(_pixels(number), format="rgb24").reformat(format=pixels)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound_codec:
            _add_sound(output, sound_codec, 48_000)
    return file.getvalue()
