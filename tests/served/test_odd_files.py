"""Real programs write media files in many unusual ways. Such a file gets the same answer as a plain file with the same
picture or sound.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy
import pytest
import soundfile
from fuzzing.odd_files import (
    EMPTY_TRACKS,
    RATE,
    TAGS,
    clip,
    deep_pictures,
    sound_file,
    transparent_pictures,
    unsized_sounds,
)
from PIL import Image

from gateway.answers.audio_formats import stream_encoder, wav
from tests.equality.media import sweep
from tests.server import Server

TOLERANCE = 1e-3
TOKENS = 4

Y, X = numpy.mgrid[0:48, 0:64]
INK = (X // 9 + Y // 7) % 3 == 0
GREY = ((4 * X + 3 * Y) % 256).astype(numpy.uint8)
# Samples of 15 bits: every writer rounds them to the same 16 bits.
SOUNDS = [numpy.rint(sweep(0.6, seed, RATE) * 16_384) / 32_768 for seed in range(3)]


def png(grey: numpy.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(grey.astype(numpy.uint8)).convert("RGB").save(file, "PNG")
    return file.getvalue()


def logprobs(server: Server, field: str, data: bytes, **fields: Any) -> list[dict[bytes, float]]:
    """The log-probabilities of the likeliest tokens at each position of the answer to one media item."""
    body = {
        "messages": [{"role": "user", "content": "What is this?"}],
        field: ["data:application/octet-stream;base64," + base64.b64encode(data).decode()],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 5,
        **fields,
    }
    status, answer = server.post(body)
    assert status == 200, answer
    places = answer["choices"][0]["logprobs"]["content"]
    return [{bytes(top["bytes"] or b""): top["logprob"] for top in place["top_logprobs"]} for place in places]


def difference(one: list[dict[bytes, float]], other: list[dict[bytes, float]]) -> float:
    """The largest difference of the log-probabilities of the same tokens; infinite if the likeliest tokens differ."""
    assert len(one) == len(other) == TOKENS
    if [max(place, key=place.__getitem__) for place in one] != [max(place, key=place.__getitem__) for place in other]:
        return numpy.inf
    return max(
        abs(first[token] - second[token])
        for first, second in zip(one, other, strict=True)
        for token in first.keys() & second.keys()
    )


@pytest.fixture(scope="module")
def white_ground(server: Server) -> list[dict[bytes, float]]:
    return logprobs(server, "images", png(numpy.where(INK, 0, 255)))


@pytest.mark.parametrize("name", transparent_pictures(INK))
def test_a_transparent_picture_is_seen_on_white(server: Server, white_ground: Any, name: str) -> None:
    seen = logprobs(server, "images", transparent_pictures(INK)[name])
    assert difference(seen, white_ground) < TOLERANCE


def test_the_ground_is_visible_in_the_answer(server: Server, white_ground: Any) -> None:
    assert difference(logprobs(server, "images", png(numpy.where(INK, 0, 0))), white_ground) > 10 * TOLERANCE


@pytest.fixture(scope="module")
def grey(server: Server) -> list[dict[bytes, float]]:
    return logprobs(server, "images", png(GREY))


@pytest.mark.parametrize("name", deep_pictures(GREY))
def test_a_deep_picture_is_seen_in_its_brightness(server: Server, grey: Any, name: str) -> None:
    assert difference(logprobs(server, "images", deep_pictures(GREY)[name]), grey) < TOLERANCE


def test_the_brightness_is_visible_in_the_answer(server: Server, grey: Any) -> None:
    assert difference(logprobs(server, "images", png(numpy.minimum(GREY, 1) * 255)), grey) > 10 * TOLERANCE


@pytest.fixture(scope="module")
def first_sound(server: Server) -> list[dict[bytes, float]]:
    return logprobs(server, "audios", sound_file(SOUNDS[0], "WAV"))


@pytest.mark.parametrize("name", unsized_sounds(SOUNDS[0]))
def test_a_sound_of_unknown_size_is_heard(server: Server, first_sound: Any, name: str) -> None:
    assert difference(logprobs(server, "audios", unsized_sounds(SOUNDS[0])[name]), first_sound) < TOLERANCE


def test_our_own_streamed_flac_is_heard(server: Server) -> None:
    encoder = stream_encoder("flac")
    streamed = b"".join([encoder.feed(sound) for sound in SOUNDS] + [encoder.finish()])
    plain = wav((numpy.rint(numpy.concatenate(SOUNDS) * 32_768)).astype("<i2").tobytes())
    assert difference(logprobs(server, "audios", streamed), logprobs(server, "audios", plain)) < TOLERANCE


@pytest.mark.parametrize("format", ["WAV", "FLAC", "AIFF"])
def test_all_pieces_of_a_lossless_file_are_heard(server: Server, format: str) -> None:
    whole = logprobs(server, "audios", sound_file(numpy.concatenate(SOUNDS), format))
    joined = logprobs(server, "audios", b"".join(sound_file(sound, format) for sound in SOUNDS))
    assert difference(joined, whole) < TOLERANCE
    assert difference(logprobs(server, "audios", sound_file(SOUNDS[0], format)), whole) > 10 * TOLERANCE


@pytest.mark.parametrize("format", ["MP3", "OGG"])
def test_all_pieces_of_a_compressed_file_are_heard(server: Server, format: str) -> None:
    files = [sound_file(sound, format) for sound in SOUNDS]
    pieces = [soundfile.read(io.BytesIO(file), dtype="float32")[0] for file in files]
    plain = io.BytesIO()
    soundfile.write(plain, numpy.concatenate(pieces), RATE, format="WAV", subtype="FLOAT")
    expected = logprobs(server, "audios", plain.getvalue())
    for between in (b"", *TAGS.values()) if format == "MP3" else (b"",):
        assert difference(logprobs(server, "audios", between.join(files)), expected) < TOLERANCE


@pytest.mark.parametrize("name", EMPTY_TRACKS)
def test_a_clip_with_an_empty_sound_track_is_silent(server: Server, name: str) -> None:
    how = EMPTY_TRACKS[name]
    heard = logprobs(server, "videos", clip(**how), use_audio_in_video=True)
    without = clip(how["container"], how.get("codec", "mpeg4"))
    assert difference(heard, logprobs(server, "videos", without, use_audio_in_video=True)) < TOLERANCE


def test_the_sound_of_a_clip_is_heard_from_its_first_sample(server: Server) -> None:
    def heard(begins: float, *sounds: numpy.ndarray) -> list[dict[bytes, float]]:
        file = clip("matroska", sound_codec="pcm_s16le", sounds=sounds, begins=begins)
        return logprobs(server, "videos", file, use_audio_in_video=True)

    assert difference(heard(0.7, *SOUNDS), heard(0, *SOUNDS)) < TOLERANCE
    assert difference(heard(0, SOUNDS[0]), heard(0, *SOUNDS)) > 10 * TOLERANCE
