"""Makes pictures, sounds and clips for tests, and encodes them as the bytes of files."""

import io
from fractions import Fraction

import av
import numpy
import soundfile
from PIL import Image

RATE = 16_000


def picture(width: int = 160, height: int = 96, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A colour gradient with waves and noise."""
    y, x = numpy.mgrid[0:height, 0:width]
    waves = 127 + 120 * numpy.sin((x + seed * 31) / 9 + y / 7)
    pixels = numpy.stack([x * 255 / width, y * 255 / height, waves], -1)
    pixels += numpy.random.default_rng(seed).normal(0, 12, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8)).convert(mode)


def image_file(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def tone(seconds: float, rate: int = RATE, seed: int = 0, channels: int = 1) -> numpy.ndarray:
    """A rising tone in noise: float32 [samples], or [samples, channels]."""
    times = numpy.arange(round(seconds * rate)) / rate
    sound = 0.3 * numpy.sin(2 * numpy.pi * (220 + 40 * seed + 30 * times) * times)
    sound += numpy.random.default_rng(seed).normal(0, 0.02, times.shape)
    sound = sound.astype(numpy.float32)
    return sound if channels == 1 else numpy.stack([sound * (1 - 0.3 * c) for c in range(channels)], axis=1)


def sound_file(samples: numpy.ndarray, rate: int = RATE, format: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def moving_pictures(frames: int, width: int = 96, height: int = 64, seed: int = 0) -> list[numpy.ndarray]:
    return [numpy.asarray(picture(width, height, seed=seed + index)) for index in range(frames)]


def clip_file(
    frames: int = 12,
    *,
    rate: Fraction | int = 4,
    sound: numpy.ndarray | None = None,
    sound_rate: int = RATE,
    format: str = "mp4",
    codec: str = "mpeg4",
    sound_codec: str = "aac",
    width: int = 96,
    height: int = 64,
    seed: int = 0,
    times: list[int] | None = None,
) -> bytes:
    """A clip of `frames` pictures (0: none), with `sound` (float32 [samples]) as its track.

    `times` gives each frame's time in units of 1/`rate` seconds, for a variable frame rate.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        pictures = voice = None
        if frames:
            pictures = container.add_stream(codec, rate=rate)
            pictures.width, pictures.height = width, height
            pictures.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
            if times is not None:
                pictures.codec_context.time_base = 1 / Fraction(rate)
        if sound is not None:
            voice = container.add_stream(sound_codec, rate=sound_rate)
            voice.layout = "mono"
        if pictures is not None:
            for index, pixels in enumerate(moving_pictures(frames, width, height, seed)):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                if times is not None:
                    frame.pts, frame.time_base = times[index], 1 / Fraction(rate)
                container.mux(pictures.encode(frame))
            container.mux(pictures.encode())
        if voice is not None:
            frame = av.AudioFrame.from_ndarray(sound[None].astype(numpy.float32), format="fltp", layout="mono")
            frame.sample_rate = sound_rate
            fifo = av.AudioFifo()
            fifo.write(frame)
            size = voice.codec_context.frame_size or 1024
            converter = av.AudioResampler(format=voice.codec_context.format, layout="mono", rate=sound_rate)
            while (part := fifo.read(size, partial=True)) is not None:
                for converted in converter.resample(part):
                    container.mux(voice.encode(converted))
            container.mux(voice.encode())
    return file.getvalue()
