"""Our resampler for streams is as good as the library soxr. The result does not depend on the lengths of the chunks."""

from __future__ import annotations

import numpy
import pytest
import soxr

from gateway.realtime.sounds.resampling import DELAY_MS, Resampler

RATES = [(24_000, 16_000), (8_000, 16_000), (24_000, 8_000)]
RANDOM = numpy.random.default_rng(7)


def resampled(pcm: numpy.ndarray, source: int, target: int, chunk: int) -> numpy.ndarray:
    stream = Resampler(source, target)
    made = [stream.feed(pcm[start : start + chunk]) for start in range(0, len(pcm), chunk)]
    return numpy.concatenate([*made, stream.finish()])


def decibels(signal: numpy.ndarray, noise: numpy.ndarray) -> float:
    return 10 * numpy.log10((signal.astype(float) ** 2).mean() / ((noise.astype(float) ** 2).mean() + 1e-9))


def sine(rate: int, pitch: float, seconds: float = 0.5) -> numpy.ndarray:
    return numpy.rint(20_000 * numpy.sin(2 * numpy.pi * pitch * numpy.arange(int(rate * seconds)) / rate))


@pytest.mark.parametrize(("source", "target"), RATES)
def test_chunks_of_any_length_give_the_same(source: int, target: int) -> None:
    pcm = RANDOM.integers(-32_768, 32_768, 3_001).astype(numpy.int16)
    whole = resampled(pcm, source, target, len(pcm))
    assert len(whole) == -(-len(pcm) * target // source)
    for chunk in (1, 2, 3, 7, 160, 1_000):
        assert numpy.array_equal(resampled(pcm, source, target, chunk), whole)


@pytest.mark.parametrize(("source", "target"), RATES)
def test_samples_come_after_the_delay(source: int, target: int) -> None:
    stream = Resampler(source, target)
    packet = numpy.ones(source // 100, numpy.int16)
    for packets in range(1, 50):
        made = len(stream.feed(packet))
        assert made == target * (10 - DELAY_MS * (packets == 1)) // 1_000


@pytest.mark.parametrize(("source", "target"), RATES)
@pytest.mark.parametrize("part", [0.01, 0.1, 0.4, 0.8])
def test_what_both_rates_can_hold_passes(source: int, target: int, part: float) -> None:
    pitch = part * min(source, target) / 2
    made = resampled(sine(source, pitch).astype(numpy.int16), source, target, 480)[500:-500]
    wanted = sine(target, pitch)[500:-500]
    assert decibels(wanted, wanted - made) > 80


@pytest.mark.parametrize("pitch", [8_050, 9_000, 11_500])
def test_what_the_new_rate_cannot_hold_is_removed(pitch: float) -> None:
    sound = sine(24_000, pitch)
    made = resampled(sound.astype(numpy.int16), 24_000, 16_000, 480)[500:-500]
    assert decibels(sound, made) > 80


@pytest.mark.parametrize(("source", "target"), RATES)
def test_noise_is_resampled_as_by_soxr(source: int, target: int) -> None:
    low = soxr.resample(RANDOM.normal(0, 3_000, 3_000), 6_000, source)
    pcm = numpy.rint(low).astype(numpy.int16)
    made = resampled(pcm, source, target, 333)
    reference = soxr.resample(pcm.astype(float), source, target)
    assert decibels(reference[500:-500], (made[: len(reference)] - reference)[500:-500]) > 60


def test_a_finished_stream_begins_again() -> None:
    stream = Resampler(24_000, 16_000)
    pcm = RANDOM.integers(-32_768, 32_768, 1_000).astype(numpy.int16)
    first, second = (numpy.concatenate([stream.feed(pcm), stream.finish()]) for _ in range(2))
    assert numpy.array_equal(first, second)


def test_without_input_there_is_no_output() -> None:
    stream = Resampler(24_000, 16_000)
    assert len(stream.finish()) == 0
    assert len(stream.feed(numpy.empty(0, numpy.int16))) == 0
