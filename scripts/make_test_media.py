#!/usr/bin/env python3
"""Make the picture, the video and the spoken questions of tests/data. The script draws and synthesises all of them, and
their licence is CC0.

    apt-get install espeak-ng
    pip install pillow numpy av
    python scripts/make_test_media.py

The drawing and the sounds are the same on every run, but other versions of the encoders may write other bytes.
"""

import argparse
import io
import math
import subprocess
import sys
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Point = tuple[float, float]
Samples = NDArray[np.float32]

QUESTIONS = {
    "query_to_cars.wav": "How many cars are there in the picture?",
    "query_to_draw.wav": "What is being drawn in the video?",
}
SPEECH_RATE = 16_000

PICTURE = (640, 480)
OVERSAMPLING = 3

VIDEO = (320, 240)
FRAME_RATE = 25
SECONDS = 4
SOUND_RATE = 24_000


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the media files of tests/data.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests" / "data")
    out: Path = parser.parse_args().out

    out.mkdir(parents=True, exist_ok=True)
    street().save(out / "cars.jpg", quality=85, optimize=True)
    write_video(out / "draw.mp4")
    try:
        for name, question in QUESTIONS.items():
            write_wav(out / name, spoken(question))
    except FileNotFoundError:
        print("make_test_media: cannot speak the questions; install espeak-ng", file=sys.stderr)
        return 1
    for file in sorted(out.iterdir()):
        print(f"{file.name:20}{file.stat().st_size:8} bytes")
    return 0


# The picture


class Canvas:
    """Draws shapes in picture coordinates. To smooth the edges, it draws on a larger image and scales the image
    down.
    """

    def __init__(self, size: tuple[int, int], background: Color, oversampling: int = OVERSAMPLING) -> None:
        self.size = size
        self._scale = oversampling
        self._image = Image.new("RGB", (size[0] * oversampling, size[1] * oversampling), background)
        self._draw = ImageDraw.Draw(self._image)

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, fill: Color, radius: float = 0) -> None:
        box = [value * self._scale for value in (x0, y0, x1, y1)]
        self._draw.rounded_rectangle(box, radius * self._scale, fill)

    def polygon(self, points: list[Point], fill: Color) -> None:
        self._draw.polygon([(x * self._scale, y * self._scale) for x, y in points], fill)

    def disc(self, x: float, y: float, radius: float, fill: Color, flattened: float = 1.0) -> None:
        """Draw a filled circle, or with `flattened` < 1 an ellipse that is wider than high."""
        height = radius * flattened
        box = [value * self._scale for value in (x - radius, y - height, x + radius, y + height)]
        self._draw.ellipse(box, fill)

    def line(self, points: list[Point], fill: Color, width: float) -> None:
        scaled = [(x * self._scale, y * self._scale) for x, y in points]
        self._draw.line(scaled, fill, round(width * self._scale), joint="curve")

    def image(self) -> Image.Image:
        return self._image.resize(self.size, Image.Resampling.LANCZOS)

    def paste(self, image: Image.Image) -> None:
        """Cover the canvas with `image`, scaled to the size of the canvas."""
        self._image.paste(image.resize(self._image.size, Image.Resampling.BILINEAR))


def street() -> Image.Image:
    """A picture of a street with a row of houses, a tree and three cars: red, blue and yellow."""
    canvas = Canvas(PICTURE, background=(150, 200, 238))
    for y in range(0, 260, 4):  # the sky is paler towards the horizon
        canvas.rectangle(0, y, 640, y + 4, (150 + y // 4, 200 + y // 8, 238 + y // 24))
    canvas.disc(560, 64, 34, (255, 236, 150))
    for x, y in ((96, 70), (330, 48), (448, 104)):
        for dx, dy, radius in ((-34, 6, 18), (-10, -4, 24), (18, 0, 22), (40, 8, 15)):
            canvas.disc(x + dx, y + dy, radius, (250, 252, 255))

    house(canvas, 14, 126, 150, wall=(214, 160, 122), roof=(150, 72, 58))
    house(canvas, 176, 92, 124, wall=(236, 214, 170), roof=(110, 96, 104))
    house(canvas, 312, 138, 160, wall=(176, 190, 170), roof=(128, 84, 66))
    house(canvas, 560, 112, 120, wall=(206, 180, 196), roof=(92, 88, 120))
    tree(canvas, 516, 258)

    canvas.rectangle(0, 258, 640, 300, (190, 186, 178))  # the pavement and its kerb
    canvas.rectangle(0, 296, 640, 304, (150, 147, 142))
    canvas.rectangle(0, 304, 640, 480, (88, 90, 96))
    for x in range(-20, 640, 110):
        canvas.polygon([(x + 8, 388), (x + 68, 388), (x + 62, 396), (x, 396)], (232, 228, 214))

    car(canvas, 48, 352, 1.0, (206, 44, 40), facing_left=False)
    car(canvas, 352, 344, 0.92, (36, 92, 186), facing_left=False)
    car(canvas, 206, 462, 1.22, (240, 186, 34), facing_left=True)
    return canvas.image()


def house(canvas: Canvas, x: float, top: float, width: float, wall: Color, roof: Color) -> None:
    """Draw a house on the pavement, with its left wall at `x`."""
    ground = 262
    canvas.rectangle(x, top, x + width, ground, wall)
    canvas.polygon([(x - 10, top), (x + width / 2, top - 46), (x + width + 10, top)], roof)
    step = width / 3
    for column in range(3):
        left = x + column * step + step * 0.28
        lowest = ground - 84 if column == 1 else ground - 62  # the door is in the middle
        for y in range(round(top) + 16, lowest, 46):
            canvas.rectangle(left - 3, y - 3, left + step * 0.44 + 3, y + 31, (250, 248, 240))
            canvas.rectangle(left, y, left + step * 0.44, y + 28, (96, 128, 158))
    canvas.rectangle(x + width / 2 - 13, ground - 46, x + width / 2 + 13, ground, roof, radius=3)
    canvas.disc(x + width / 2 + 7, ground - 22, 2, (240, 220, 150))


def tree(canvas: Canvas, x: float, ground: float) -> None:
    canvas.rectangle(x - 6, ground - 70, x + 6, ground + 4, (108, 78, 52))
    leaves = ((0, -110, 40), (-28, -84, 30), (28, -86, 32), (2, -72, 32))
    for dx, dy, radius in leaves:
        canvas.disc(x + dx, ground + dy, radius, (70, 128, 66))
    for dx, dy, radius in leaves[:3]:
        canvas.disc(x + dx - 8, ground + dy - 10, radius * 0.55, (96, 154, 84))


def car(canvas: Canvas, x: float, ground: float, scale: float, paint: Color, facing_left: bool) -> None:
    """Draw a car from the side, with its left end at `x` and its wheels on `ground`; 190 × 75 pixels at scale 1."""

    def at(dx: float, dy: float) -> Point:
        across = 190 - dx if facing_left else dx
        return x + across * scale, ground - dy * scale

    def shape(points: list[Point], fill: Color) -> None:
        canvas.polygon([at(*point) for point in points], fill)

    def disc(dx: float, dy: float, radius: float, fill: Color) -> None:
        canvas.disc(*at(dx, dy), radius * scale, fill)

    shade: Color = (paint[0] * 3 // 4, paint[1] * 3 // 4, paint[2] * 3 // 4)
    glass, dark, metal = (176, 212, 230), (30, 32, 36), (196, 200, 206)

    canvas.disc(*at(95, 0), 98 * scale, (66, 67, 72), flattened=0.08)
    shape([(34, 42), (58, 72), (66, 75), (116, 75), (124, 72), (152, 44)], paint)  # the cabin
    shape([(2, 20), (4, 40), (12, 46), (150, 48), (178, 42), (188, 34), (188, 18), (182, 14), (6, 14)], paint)
    shape([(2, 20), (188, 20), (188, 17), (182, 12), (6, 12)], shade)
    shape([(48, 47), (63, 68), (86, 69), (86, 47)], glass)
    shape([(92, 47), (92, 69), (116, 69), (138, 47)], glass)
    shape([(56, 50), (68, 66), (74, 66), (62, 50)], (214, 234, 244))  # a glint on each window
    shape([(98, 50), (108, 66), (114, 66), (104, 50)], (214, 234, 244))
    canvas.line([at(89, 46), at(90, 18)], shade, 1.6 * scale)
    shape([(94, 40), (106, 40), (106, 37), (94, 37)], shade)  # the door's handle
    shape([(177, 39), (187, 33), (187, 28), (176, 32)], (255, 246, 206))  # the headlight
    shape([(3, 38), (9, 38), (9, 28), (2, 28)], (170, 24, 28))  # the tail light
    for wheel in (44, 148):
        disc(wheel, 16, 20, shade)
        disc(wheel, 14, 17, dark)
        disc(wheel, 14, 10, metal)
        for spoke in range(5):
            angle = spoke * 2 * math.pi / 5
            disc(wheel + 6 * math.cos(angle), 14 + 6 * math.sin(angle), 2.2, (110, 114, 120))
        disc(wheel, 14, 2.4, dark)


# The video


@dataclass(frozen=True)
class Stroke:
    """A line that the pencil draws, and the tone that sounds at the same time. The line begins at the time `start` and
    ends at the time `end`. Both times are fractions of the length of the video.
    """

    points: list[Point]
    color: Color
    start: float
    end: float
    tone: float
    """The frequency of the tone in hertz."""

    def drawn(self, moment: float) -> list[Point]:
        """The part of the line that has been drawn at the time `moment`. Points are drawn at equal intervals."""
        progress = (moment - self.start) / (self.end - self.start)
        return self.points[: math.ceil(min(max(progress, 0), 1) * len(self.points))]


def strokes() -> list[Stroke]:
    """The strokes of a house with a chimney, a door and windows, then of the sun and the ground, in the order of
    drawing.
    """
    ink, red, blue, orange = (52, 56, 70), (176, 62, 50), (58, 108, 170), (234, 160, 40)
    rays = [[(268 + math.cos(a) * r, 52 + math.sin(a) * r) for r in (27, 38)] for a in np.arange(8) * math.pi / 4]
    lines: list[tuple[list[Point], Color]] = [
        ([(80, 120), (80, 206), (220, 206), (220, 120), (80, 120)], ink),
        ([(66, 124), (150, 58), (234, 124)], red),
        ([(186, 85), (186, 60), (206, 60), (206, 101)], red),
        ([(136, 206), (136, 156), (164, 156), (164, 206)], ink),
        ([(94, 138), (122, 138), (122, 166), (94, 166), (94, 138), (108, 138), (108, 166)], blue),
        ([(178, 138), (206, 138), (206, 166), (178, 166), (178, 138), (192, 138), (192, 166)], blue),
        ([(268 + 21 * math.cos(a), 52 + 21 * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 40)], orange),
        *((ray, orange) for ray in rays),
        ([(24, 206), (298, 206)], (84, 140, 76)),
    ]
    pentatonic = (261.6, 293.7, 329.6, 392.0, 440.0)
    lengths = [path_length(points) + 14 for points, _ in lines]  # the pencil needs time between strokes too
    # The video begins with a moment of empty paper, and ends with a view of the finished house.
    bounds = 0.04 + 0.86 * np.cumsum([0, *lengths]) / sum(lengths)
    return [
        Stroke(resampled(points), color, bounds[i], bounds[i + 1] - 0.006, pentatonic[i * 2 % 5])
        for i, (points, color) in enumerate(lines)
    ]


def path_length(points: list[Point]) -> float:
    return sum(math.dist(a, b) for a, b in pairwise(points))


def resampled(points: list[Point]) -> list[Point]:
    """The same line with a point every two pixels, a little unsteady as if drawn by hand."""
    corners = np.array(points)
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    steps = np.linspace(0, along[-1], max(2, round(along[-1] / 2)))
    x, y = (np.interp(steps, along, corners[:, axis]) for axis in (0, 1))
    x, y = x + 0.7 * np.sin(steps / 17), y + 0.7 * np.cos(steps / 13)
    return [(float(u), float(v)) for u, v in zip(x, y, strict=True)]


def frames() -> Iterator[Image.Image]:
    """Yield the frames of the video: the paper at each moment, with the pencil at the end of the newest line."""
    drawing = strokes()
    total = FRAME_RATE * SECONDS
    for number in range(total):
        canvas = Canvas(VIDEO, background=(250, 247, 238))
        tip: Point = (40, 220)
        moment = number / total
        for stroke in drawing:
            visible = stroke.drawn(moment)
            if len(visible) > 1:
                canvas.line(visible, stroke.color, 3)
                tip = visible[-1]
        if moment < drawing[-1].end:
            pencil(canvas, *tip)
        yield canvas.image()


def pencil(canvas: Canvas, x: float, y: float) -> None:
    """Draw a pencil that leans to the right, with its tip at (x, y)."""

    def shape(points: list[Point], fill: Color) -> None:
        canvas.polygon([(x + dx, y + dy) for dx, dy in points], fill)

    shape([(0, 0), (4, -11), (11, -6)], (226, 190, 146))
    shape([(0, 0), (1.6, -4.4), (4.4, -2.4)], (40, 40, 46))
    shape([(4, -11), (11, -6), (43, -52), (36, -57)], (236, 190, 52))
    shape([(36, -57), (43, -52), (47, -58), (40, -63)], (214, 120, 120))


def sound() -> Samples:
    """The sound of a pencil on paper, with a soft tone for each stroke: [samples] at `SOUND_RATE`."""
    time = np.arange(SOUND_RATE * SECONDS) / SOUND_RATE
    noise = np.random.default_rng(0).standard_normal(len(time))
    scratch = noise - np.convolve(noise, np.ones(12) / 12, mode="same")  # the noise without its low frequencies
    track = np.zeros(len(time))
    for stroke in strokes():
        start, end = stroke.start * SECONDS, stroke.end * SECONDS
        touching = np.clip((time - start) / 0.02, 0, 1) * np.clip((end - time) / 0.02, 0, 1)
        track += 0.03 * touching * scratch * (1 + 0.5 * np.sin(2 * np.pi * 9 * time))
        since = np.maximum(time - start, 0)
        ringing = np.exp(-5 * since) * np.clip(since / 0.01, 0, 1)
        track += 0.12 * ringing * np.sin(2 * np.pi * stroke.tone * since)
    return np.asarray(np.clip(track, -1, 1), dtype=np.float32)


def write_video(path: Path) -> None:
    with av.open(str(path), "w", options={"fflags": "+bitexact", "movflags": "+faststart"}) as container:
        # One thread: with more threads, the bytes would depend on how a frame is split between the threads.
        video = container.add_stream("libx264", FRAME_RATE, options={"crf": "26", "preset": "veryslow", "threads": "1"})
        video.width, video.height = VIDEO
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", SOUND_RATE, layout="mono")
        audio.bit_rate = 48_000

        for number, image in enumerate(frames()):
            frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FRAME_RATE)
            container.mux(video.encode(frame))
        container.mux(video.encode())

        track = AudioFrame.from_ndarray(sound()[None], format="fltp", layout="mono")
        track.sample_rate, track.pts, track.time_base = SOUND_RATE, 0, Fraction(1, SOUND_RATE)
        resampler = AudioResampler("fltp", "mono", SOUND_RATE, frame_size=1024)  # one AAC frame at a time
        for piece in [*resampler.resample(track), *resampler.resample(None)]:
            container.mux(audio.encode(piece))
        container.mux(audio.encode())


# The questions


def spoken(text: str) -> Samples:
    """`text` read aloud: [samples] at `SPEECH_RATE`."""
    command = ["espeak-ng", "-v", "en-us", "-s", "150", "--stdout", text]
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    resampler = AudioResampler("flt", "mono", SPEECH_RATE)
    with av.open(io.BytesIO(wav), "r") as container:
        pieces = [piece for frame in container.decode(audio=0) for piece in resampler.resample(frame)]
    pieces += resampler.resample(None)
    samples = np.concatenate([piece.to_ndarray()[0] for piece in pieces])
    return np.asarray(0.8 * samples / np.abs(samples).max(), dtype=np.float32)


def write_wav(path: Path, samples: Samples) -> None:
    """Write `samples` as 16-bit mono at `SPEECH_RATE`."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SPEECH_RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


if __name__ == "__main__":
    sys.exit(main())
