"""Sounds are cut into the windows of the audio tower. The complete windows of a growing sound stay the same."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy
import pytest

from gateway.realtime.sounds.input_buffer import sound_of
from stages.checkpoint.audio_lengths import audio_rows
from stages.messages import AudioItem
from stages.preprocessing.features import Features
from stages.preprocessing.sound_windows import SoundWindows

RATE = 16_000
WINDOW = 8 * RATE
RANDOM = numpy.random.default_rng(4)
SPEECH = RANDOM.normal(0, 3_000, 25 * RATE).clip(-32_768, 32_767).astype("<i2")


@pytest.fixture(scope="module")
def features(processor: Any) -> Features:
    return Features(processor)


def item_of(features: Features, pcm: numpy.ndarray) -> AudioItem:
    """The features of a sound in a realtime session (int16 at 16 kHz)."""
    with wave.open(io.BytesIO(bytes(sound_of(pcm.tobytes(), "audio").medium.data.buffer()))) as file:
        samples = numpy.frombuffer(file.readframes(file.getnframes()), "<i2")
    [item] = features.sounds([samples.astype(numpy.float32) / 32_768]).items
    return item


def keys(features: Features, pcm: numpy.ndarray) -> list[bytes]:
    return [window.key for window in SoundWindows(800).of(item_of(features, pcm), 100)]


@pytest.mark.parametrize(("seconds", "frames"), [(5, [502]), (8, [800, 2]), (20, [800, 800, 402])])
def test_windows_are_the_sound_in_pieces(features: Features, seconds: int, frames: list[int]) -> None:
    item = item_of(features, SPEECH[: seconds * RATE])
    windows = list(SoundWindows(800).of(item, 100))
    assert [window.mel.shape[1] for window in windows] == frames
    assert numpy.array_equal(numpy.concatenate([window.mel.numpy() for window in windows], axis=1), item.mel.numpy())
    assert len({window.key for window in windows}) == len(windows)
    rows = numpy.arange(10, 10 + audio_rows(item.mel.shape[1]))
    parts = SoundWindows(800).rows_of(rows)
    assert [len(part) for part in parts] == [audio_rows(count) for count in frames]
    assert numpy.array_equal(numpy.concatenate(parts), rows)


@pytest.mark.parametrize("windows", [1, 2, 3])
def test_the_windows_of_a_growing_sound_stay_the_same(features: Features, windows: int) -> None:
    begun = keys(features, SPEECH[: windows * WINDOW + 40])
    assert begun[:windows] == keys(features, SPEECH)[:windows]
    early = keys(features, SPEECH[: windows * WINDOW + 39 - 160])
    assert early[windows - 1] != begun[windows - 1]


def test_a_window_that_later_sound_changes_gets_another_key(features: Features) -> None:
    silence = numpy.zeros(WINDOW, "<i2")
    soft, loud = SPEECH[:RATE], (SPEECH[:RATE].astype(numpy.int32) * 4).clip(-32_768, 32_767).astype("<i2")
    begun = keys(features, numpy.concatenate([soft, silence, soft]))
    assert keys(features, numpy.concatenate([soft, silence, soft, soft]))[0] == begun[0]
    assert keys(features, numpy.concatenate([soft, silence, soft, loud]))[0] != begun[0]
