"""The committed media can be decoded, and match their description in tests/data/README.md."""

import wave
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")

DATA = Path(__file__).parent.parent / "data"

# For each car in the picture, a point on its door, and the colour at that point.
CARS = {
    "red": ((166, 325), (206, 44, 40)),
    "blue": ((460, 320), (36, 92, 186)),
    "yellow": ((290, 430), (240, 186, 34)),
}


def test_the_picture_shows_a_red_a_blue_and_a_yellow_car() -> None:
    with Image.open(DATA / "cars.jpg") as picture:
        assert picture.format == "JPEG"
        assert picture.size == (640, 480)
        seen = {name: picture.getpixel(door) for name, (door, _) in CARS.items()}

    assert seen == {name: pytest.approx(paint, abs=20) for name, (_, paint) in CARS.items()}


def test_the_video_has_a_picture_track_and_a_sound_track() -> None:
    with av.open(str(DATA / "draw.mp4")) as container:
        (picture,) = container.streams.video
        (sound,) = container.streams.audio

        assert picture.codec_context.name == "h264"
        assert (picture.width, picture.height) == (320, 240)
        assert picture.average_rate == 25
        assert sound.codec_context.name == "aac"
        assert sound.rate == 24_000
        assert sound.channels == 1
        assert container.duration / av.time_base == pytest.approx(4, abs=0.1)


def test_more_and_more_of_the_drawing_is_there() -> None:
    with av.open(str(DATA / "draw.mp4")) as container:
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]

    assert len(frames) == 100
    ink = [int((frame < 180).sum()) for frame in frames[::11]]
    assert ink[0] < 200  # the first frame shows only the pencil on empty paper
    assert ink[-1] > 3000
    assert ink[1:-1] == sorted(ink[1:-1])


def test_the_drawing_can_be_heard() -> None:
    with av.open(str(DATA / "draw.mp4")) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])

    assert len(sound) == pytest.approx(4 * 24_000, abs=2048)
    assert loudness(sound) > 0.02


@pytest.mark.parametrize("name", ["query_to_cars.wav", "query_to_draw.wav"])
def test_a_question_is_speech_of_a_few_seconds(name: str) -> None:
    with wave.open(str(DATA / name)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768

    assert 1.5 < len(samples) / 16_000 < 4
    assert loudness(samples) > 0.05
    assert np.abs(samples).max() < 1


def test_the_files_are_small() -> None:
    limits = {"cars.jpg": 80, "draw.mp4": 150, "query_to_cars.wav": 120, "query_to_draw.wav": 120}
    too_large = {name for name, limit in limits.items() if (DATA / name).stat().st_size > limit * 1000}
    assert not too_large


def loudness(samples: np.ndarray) -> float:
    """The root mean square of the samples."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
