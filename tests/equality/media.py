"""Makes pictures, sounds and clips of many shapes for the equality tests."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy
import soundfile
from PIL import Image

RATE = 16_000


def make_picture(path: Path, width: int, height: int, seed: int) -> Path:
    """A picture of waves and noise, different for each seed."""
    rng = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[0:height, 0:width]
    waves = [numpy.sin(x / rng.uniform(2, 20) + y / rng.uniform(2, 20) + rng.uniform(0, 6)) for _ in range(3)]
    pixels = 127 + 100 * numpy.stack(waves, axis=-1) + rng.normal(0, 15, (height, width, 3))
    Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8)).save(path)
    return path


def make_sound(path: Path, seconds: float, seed: int, rate: int = RATE, channels: int = 1) -> Path:
    """A sweep with noise, different for each seed."""
    samples = sweep(seconds, seed, rate)
    soundfile.write(path, numpy.stack([samples] * channels, axis=-1) if channels > 1 else samples, rate)
    return path


def make_clip(
    path: Path, frames: int, fps: int, seed: int, *, width: int = 96, height: int = 64, sound: bool = False
) -> Path:
    """A clip of moving bars in H.264. If requested, the clip has a sound track: a sweep in AAC."""
    rng = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[0:height, 0:width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18"}
        track = container.add_stream("aac", rate=RATE, layout="mono") if sound else None
        speed, angle = rng.uniform(2, 9), rng.uniform(0, 3)
        for number in range(frames):
            bars = numpy.sin((x * numpy.cos(angle) + y * numpy.sin(angle) + number * speed) / 6)
            pixels = numpy.stack([127 + 120 * bars, 127 - 120 * bars, (x + number * 9) % 256], axis=-1)
            frame = av.VideoFrame.from_ndarray(pixels.astype(numpy.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track is not None:
            samples = sweep(frames / fps, seed, RATE)
            block = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            block.rate = RATE
            container.mux(track.encode(block))
            container.mux(track.encode())
    return path


def sweep(seconds: float, seed: int, rate: int) -> numpy.ndarray:
    """float32 [seconds · rate]: a rising tone in noise."""
    rng = numpy.random.default_rng(seed)
    t = numpy.arange(round(seconds * rate)) / rate
    tone = numpy.sin(2 * numpy.pi * (rng.uniform(100, 400) + rng.uniform(50, 500) * t) * t)
    return (0.3 * tone + rng.normal(0, 0.05, t.shape)).astype(numpy.float32)
