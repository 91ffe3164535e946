"""Makes variants of media items. No cache of the server contains these variants."""

from __future__ import annotations

import io
import random
from fractions import Fraction

import av
import numpy
import soundfile
from PIL import Image

from gateway.bench.media import Medium

# The side, in pixels, of the square of noise that marks a variant.
_PATCH = 32
# The amplitude of the noise, relative to full scale.
_NOISE = 1e-3


def variant(medium: Medium, rng: random.Random) -> Medium:
    """The same picture or clip with a small patch of noise in the corner, or the same sound with faint noise added.

    A server recognises a media item by its content. So the server must decode, encode and prefill a variant like a new
    item. A variant of a clip has no sound track, because by default the server does not use the sound track.
    """
    noise = numpy.random.default_rng(rng.getrandbits(64))
    make = {"image": _picture, "audio": _sound, "video": _clip}[medium.kind]
    type_ = {"image": "image/jpeg", "audio": "audio/wav", "video": "video/mp4"}[medium.kind]
    return Medium(medium.kind, type_, make(medium.data, noise))


def _patched(pixels: numpy.ndarray, patch: numpy.ndarray) -> numpy.ndarray:
    """A copy of `pixels` (uint8 [height, width, 3]) with `patch` in the corner. If the patch is larger than the
    picture, the patch is cropped.
    """
    pixels = pixels.copy()
    corner = pixels[: len(patch), : len(patch)]
    corner[:] = patch[: corner.shape[0], : corner.shape[1]]
    return pixels


def _patch(noise: numpy.random.Generator) -> numpy.ndarray:
    return noise.integers(0, 256, (_PATCH, _PATCH, 3), dtype=numpy.uint8)


def _picture(data: bytes, noise: numpy.random.Generator) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        pixels = numpy.asarray(image.convert("RGB"))
    file = io.BytesIO()
    Image.fromarray(_patched(pixels, _patch(noise))).save(file, "JPEG", quality=90)
    return file.getvalue()


def _sound(data: bytes, noise: numpy.random.Generator) -> bytes:
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    file = io.BytesIO()
    noisy = samples + _NOISE * noise.standard_normal(samples.shape, dtype=numpy.float32)
    soundfile.write(file, noisy.clip(-1, 1), rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _clip(data: bytes, noise: numpy.random.Generator) -> bytes:
    patch = _patch(noise)
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(file, "w", format="mp4") as target:
        pictures = source.streams.video[0]
        stream = target.add_stream("mpeg4", rate=Fraction(pictures.average_rate or 25))
        stream.width, stream.height = pictures.codec_context.width, pictures.codec_context.height
        stream.pix_fmt = "yuv420p"
        for frame in source.decode(pictures):
            marked = av.VideoFrame.from_ndarray(_patched(frame.to_ndarray(format="rgb24"), patch), format="rgb24")
            target.mux(stream.encode(marked))
        target.mux(stream.encode(None))
    return file.getvalue()
