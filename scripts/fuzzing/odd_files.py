"""Makes intact but unusual files, as some programs write them. Examples are files with unknown sizes in the header,
joined files, transparent pictures, samples of more than 8 bits, and empty sound tracks. `unsized_sounds`,
`transparent_pictures` and `deep_pictures` each make several files with the same content.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import av
import numpy
import soundfile
from PIL import Image

from gateway.answers.audio_formats import Pipe

RATE = 16_000

# Tags between the pieces of a joined file: an ID3v1 tag, an ID3v2 tag whose content looks like MP3 frames, and an APE
# tag.
TAGS = {
    "ID3v1": b"TAG" + bytes(125),
    "ID3v2": b"ID3\4\0\0\0\0\0\x20" + b"\xff\xfb\x90\x64" * 8,
    "APE": b"".join(
        b"APETAGEX" + struct.pack("<IIIIQ", 2000, 32, 0, flags, 0) for flags in (0xA000_0000, 0x8000_0000)
    ),
}  # fmt: skip

# The offset of the size of the sound data in a WAV of libsndfile.
_WAV_SIZE_AT = 40


def piped(sound: numpy.ndarray, container: str, codec: str, **options: str) -> bytes:
    """A sound, float32 [samples] at `RATE`, as FFmpeg writes it to a pipe."""
    pipe = Pipe()
    with av.open(pipe, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=RATE)
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        _encode_sound(output, stream, sound, 0)
    return pipe.take()


def wav_of_size(sound: numpy.ndarray, size: int) -> bytes:
    """A WAV file of `sound` in 16 bits. Its header states `size` bytes of sound data, whatever the real size is."""
    data = bytearray(sound_file(sound, "WAV"))
    struct.pack_into("<I", data, _WAV_SIZE_AT, size)
    return bytes(data)


def sound_file(sound: numpy.ndarray, container: str) -> bytes:
    """The file that libsndfile writes for `sound` (float32 [samples] at `RATE`), in 16 bits or in the container's
    codec.
    """
    file = io.BytesIO()
    subtype = None if container in ("OGG", "MP3") else "PCM_16"
    soundfile.write(file, sound, RATE, format=container, subtype=subtype)
    return file.getvalue()


def unsized_sounds(sound: numpy.ndarray) -> dict[str, bytes]:
    """`sound` in 16 bits, in several files whose headers do not state the size of the sound data."""
    aiff = bytearray(sound_file(sound, "AIFF"))
    struct.pack_into(">I", aiff, aiff.index(b"COMM") + 10, 0x7F00_0000 // 2)
    struct.pack_into(">I", aiff, aiff.index(b"SSND") + 4, 0x7F00_0000 + 8)
    return {
        "FLAC of a pipe": piped(sound, "flac", "flac"),
        "WAV of a pipe": piped(sound, "wav", "pcm_s16le"),
        "RF64 of a pipe": piped(sound, "wav", "pcm_s16le", rf64="always"),
        "W64 of a pipe": piped(sound, "w64", "pcm_s16le"),
        "AU of a pipe": piped(sound, "au", "pcm_s16be"),
        "AIFF of a pipe": piped(sound, "aiff", "pcm_s16be"),
        "CAF of a pipe": piped(sound, "caf", "pcm_s16be"),
        "AIFF of SoX": bytes(aiff),
        "WAV of size 0": wav_of_size(sound, 0),
        "WAV of SoX": wav_of_size(sound, 0x7FFF_F000),
        "WAV of GStreamer": wav_of_size(sound, 0x7FFF_0000),
        "WAV of the largest signed size": wav_of_size(sound, 0x7FFF_FFFF),
        "WAV of arecord": wav_of_size(sound, 0x8000_0000),
        "WAV of the largest size minus a header": wav_of_size(sound, 0xFFFF_FFFF - 36),
        "WAV of the largest size": wav_of_size(sound, 0xFFFF_FFFF),
    }


def png(width: int, height: int, depth: int, kind: int, pixels: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with the given depth, colour type and rows of pixels, and with the given chunks before its pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    length = len(pixels) // height
    rows = b"".join(b"\0" + pixels[start : start + length] for start in range(0, len(pixels), length))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def transparent_pictures(ink: numpy.ndarray) -> dict[str, bytes]:
    """A black drawing, bool [height, width], on a transparent black background."""
    height, width = ink.shape
    alpha = Image.fromarray(numpy.where(ink, 255, 0).astype(numpy.uint8))
    grey = Image.new("L", alpha.size, 0)
    rgba = Image.merge("RGBA", [grey, grey, grey, alpha])
    palette = Image.fromarray(ink.astype(numpy.uint8)).convert("P")
    palette.putpalette([0, 0, 0] * 2)
    # The background has a colour that occurs nowhere else and that the file declares transparent.
    levels = numpy.where(ink, 0, 3).astype(numpy.uint8)
    deep = numpy.where(ink, 0, 0x0301).astype(">u2")
    quarters = levels.reshape(height, -1, 4) @ numpy.array([64, 16, 4, 1])
    return {
        "PNG RGBA": _image_file(rgba, "PNG"),
        "PNG LA": _image_file(Image.merge("LA", [grey, alpha]), "PNG"),
        "PNG palette": _image_file(palette, "PNG", transparency=0),
        "PNG palette of alphas": _image_file(palette, "PNG", transparency=b"\0\xff"),
        "PNG transparent grey": png(width, height, 8, 0, levels.tobytes(), (b"tRNS", b"\0\3")),
        "PNG transparent grey of 2 bits": png(
            width, height, 2, 0, quarters.astype(numpy.uint8).tobytes(), (b"tRNS", b"\0\3")
        ),
        "PNG transparent grey of 16 bits": png(width, height, 16, 0, deep.tobytes(), (b"tRNS", b"\3\1")),
        "PNG transparent colour": png(width, height, 8, 2, levels.repeat(3).tobytes(), (b"tRNS", b"\0\3" * 3)),
        "PNG transparent colour of 16 bits": png(
            width, height, 16, 2, deep.repeat(3).tobytes(), (b"tRNS", b"\3\1" * 3)
        ),
        "WEBP": _image_file(rgba, "WEBP", lossless=True, exact=True),
        "GIF": _image_file(palette, "GIF", transparency=0),
        "TIFF": _image_file(rgba, "TIFF"),
        "ICO": _image_file(rgba, "ICO", sizes=[rgba.size]),
        "TGA": _image_file(rgba, "TGA"),
        "AVIF": _image_file(rgba, "AVIF", quality=100, subsampling="4:4:4"),
    }


def deep_pictures(grey: numpy.ndarray) -> dict[str, bytes]:
    """Files of a picture, each with more than 8 bits per sample. The argument `grey` is uint8 [height, width]."""
    height, width = grey.shape
    deep = grey.astype(numpy.uint16) * 257
    pgm = b"P5\n%d %d\n65535\n" % (width, height)
    return {
        "PNG I;16": _image_file(Image.fromarray(deep), "PNG"),
        "PNG RGB of 16 bits": png(width, height, 16, 2, deep.astype(">u2").repeat(3).tobytes()),
        "TIFF I;16": _image_file(Image.fromarray(deep), "TIFF"),
        "TIFF I;16B": _image_file(Image.fromarray(deep.astype(">u2")), "TIFF"),
        "TIFF I": _image_file(Image.fromarray(deep.astype(numpy.int32)), "TIFF"),
        "TIFF F of 0 to 1": _image_file(Image.fromarray(grey.astype(numpy.float32) / 255), "TIFF"),
        "TIFF F of 0 to 65535": _image_file(Image.fromarray(deep.astype(numpy.float32)), "TIFF"),
        "JPEG2000 I;16": _image_file(Image.fromarray(deep), "JPEG2000"),
        "PPM": pgm + deep.astype(">u2").tobytes(),
    }


def clip(
    container: str,
    codec: str = "mpeg4",
    sound_codec: str = "",
    sounds: Sequence[numpy.ndarray] = (),
    *,
    begins: float = 0,
    rate: int = RATE,
    **options: str,
) -> bytes:
    """A clip of eight frames with a sound track.

    Args:
        sound_codec: Codec of the track; if it is empty, the clip has no track.
        sounds: float32 [samples] at `rate`, one after the other; without them, the track is empty.
        begins: Time at which the sound begins, in seconds.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options) as output:
        pictures = output.add_stream(codec, rate=25 if codec == "mpeg2video" else 4)
        assert isinstance(pictures, av.VideoStream)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        track = output.add_stream(sound_codec, rate=rate) if sound_codec else None
        if isinstance(track, av.AudioStream):
            track.layout = "mono"
        output.start_encoding()
        y, x = numpy.mgrid[0:48, 0:64]
        for number in range(8):
            pixels = numpy.stack([4 * x, 5 * y, 16 * ((x + y + 3 * number) % 16)], -1).astype(numpy.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            output.mux(pictures.encode(frame))
        output.mux(pictures.encode(None))
        if isinstance(track, av.AudioStream) and sounds:
            _encode_sound(output, track, numpy.concatenate(sounds), round(begins * rate))
    return file.getvalue()


# The arguments of `clip` for clips with an empty sound track. All these clips have the same frames.
EMPTY_TRACKS: dict[str, dict[str, Any]] = {
    "mp4": {"container": "mp4", "sound_codec": "aac", "movflags": "empty_moov+frag_keyframe"},
    "mov": {"container": "mov", "sound_codec": "pcm_s16le", "movflags": "empty_moov+frag_keyframe"},
    "mkv": {"container": "matroska", "sound_codec": "aac"},
    "avi": {"container": "avi", "sound_codec": "mp2"},
    "webm": {"container": "webm", "codec": "libvpx", "sound_codec": "libopus", "rate": 48_000},
    "mpegts": {"container": "mpegts", "codec": "mpeg2video", "sound_codec": "mp2"},
}


def _encode_sound(
    output: av.container.OutputContainer, stream: av.AudioStream, sound: numpy.ndarray, begins: int
) -> None:
    """Encode and write `sound`. `begins` is the time at which it begins, as a number of samples."""
    rate = stream.rate
    frame = av.AudioFrame.from_ndarray(sound[None, :].astype(numpy.float32), format="flt", layout="mono")
    frame.sample_rate, frame.pts = rate, 0
    fifo = av.AudioFifo()
    for part in av.AudioResampler(format=stream.format, layout="mono", rate=rate).resample(frame):
        fifo.write(part)
    while (part := fifo.read(stream.codec_context.frame_size or 1024, partial=True)) is not None:
        part.pts = begins
        begins += part.samples
        output.mux(stream.encode(part))
    output.mux(stream.encode(None))


def _image_file(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
