"""Loads the recordings that talkers speak."""

from __future__ import annotations

import io
from pathlib import Path

import numpy
import soundfile
import soxr
from msgspec import Struct

from gateway.bench.media import load_media
from omni_pipeline.errors import StartupError

RATE = 24_000  # Hz, the sample rate of pcm16 in the realtime API
SAMPLE_BYTES = 2
# Loudness is measured in blocks of 10 ms.
_BLOCK = RATE // 100
# A block is voiced if its loudness is at least this fraction (-40 dB) of the loudness of the loudest block.
_VOICED = 0.01


class Utterance(Struct, frozen=True):
    """One recording.

    Attributes:
        pcm: Little-endian mono pcm16 at `RATE`.
        first_voiced, last_voiced: Times in the recording at which speech begins and ends, in seconds.
    """

    pcm: bytes
    first_voiced: float
    last_voiced: float

    @property
    def seconds(self) -> float:
        return len(self.pcm) / SAMPLE_BYTES / RATE


def load_utterances(directory: Path) -> list[Utterance]:
    """The recordings (WAV, FLAC) in `directory`, sorted by name.

    Raises:
        StartupError: if there are no recordings, or if a recording is damaged or silent.
    """
    return [_utterance(medium.data, directory) for medium in load_media(directory, "audio")]


def _utterance(file: bytes, directory: Path) -> Utterance:
    try:
        samples, rate = soundfile.read(io.BytesIO(file), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise StartupError(f"A recording in {directory} cannot be read: {error}") from error
    sound = soxr.resample(samples.mean(axis=1), rate, RATE)
    sound = sound[: len(sound) - len(sound) % _BLOCK]
    loudness = numpy.sqrt((sound.reshape(-1, _BLOCK) ** 2).mean(axis=1))
    if not loudness.any():
        raise StartupError(f"A recording in {directory} is silent.")
    voiced = numpy.nonzero(loudness >= _VOICED * loudness.max())[0]
    pcm = numpy.clip(numpy.rint(sound * 32_768), -32_768, 32_767).astype("<i2").tobytes()
    return Utterance(pcm, int(voiced[0]) * _BLOCK / RATE, int(voiced[-1] + 1) * _BLOCK / RATE)
