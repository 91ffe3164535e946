"""The features of a sound of a realtime conversation do not depend on the other sounds of the conversation. So later
prompts find the sound in the caches.
"""

from __future__ import annotations

import io
import wave

import numpy
import pytest

from gateway.realtime.sounds.input_buffer import sound_of
from stages.preprocessing.features import Features


def committed(seconds: float, seed: int) -> numpy.ndarray:
    """The samples of an item's sound, which is `seconds` of noise: float32 [n] at 16 kHz."""
    noise = numpy.random.default_rng(seed).standard_normal(int(16_000 * seconds)) * 6_000
    content = sound_of(noise.clip(-32_768, 32_767).astype("<i2").tobytes(), "audio")
    with wave.open(io.BytesIO(bytes(content.medium.data.buffer()))) as file:
        samples = numpy.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples.astype(numpy.float32) / 32_768


@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.987, 1.0, 2.34567, 8.0])
def test_features_are_the_same_alone_and_in_company(processor, seconds):
    features = Features(processor)
    own, longer = committed(seconds, 0), committed(11.1, 1)
    [alone] = features.sounds([own]).items
    together, _ = features.sounds([own, longer]).items
    assert alone.key == together.key
    assert numpy.array_equal(alone.mel.numpy(), together.mel.numpy())
