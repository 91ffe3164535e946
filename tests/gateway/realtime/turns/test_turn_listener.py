"""Silero finds the turns in recorded speech, among silence, noise and tones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy
import pytest
import soundfile

from gateway.realtime.turns.turn_detection import PauseCandidate, SpeechResumed, SpeechStarted, SpeechStopped, TurnEvent
from gateway.realtime.turns.turn_listener import TurnDetector
from gateway.realtime.turns.turn_options import SemanticVad, ServerVad
from gateway.realtime.turns.voice_pool import VoicePool

RATE = 16_000
RANDOM = numpy.random.default_rng(20)


@pytest.fixture
def pool():
    pool = VoicePool()
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def questions(data: Path) -> list[numpy.ndarray]:
    """float32 [n] at 16 kHz: "How many cars are there in the picture?" and "What is being drawn in the video?"."""
    return [soundfile.read(data / name, dtype="float32")[0] for name in ("query_to_cars.wav", "query_to_draw.wav")]


def silence(seconds: float) -> numpy.ndarray:
    return numpy.zeros(int(seconds * RATE), numpy.float32)


def noise(seconds: float, level: float) -> numpy.ndarray:
    return RANDOM.normal(0, level, int(seconds * RATE)).astype(numpy.float32)


def tone(seconds: float, pitch: float) -> numpy.ndarray:
    return (0.3 * numpy.sin(2 * numpy.pi * pitch * numpy.arange(int(seconds * RATE)) / RATE)).astype(numpy.float32)


async def events_of(detector: TurnDetector, sound: numpy.ndarray, chunk: int = 320) -> list[TurnEvent]:
    events = []
    for start in range(0, len(sound), chunk):
        events += await detector.feed(sound[start : start + chunk])
    return events


def turns(events: list[TurnEvent]) -> list[tuple[int, int]]:
    """The beginning and the end of each turn, in ms."""
    bounds = [event.at_ms for event in events if isinstance(event, SpeechStarted | SpeechStopped)]
    assert len(bounds) % 2 == 0
    return list(zip(bounds[::2], bounds[1::2], strict=True))


async def test_each_question_is_one_turn(pool: VoicePool, questions: list[numpy.ndarray]) -> None:
    detector = TurnDetector(ServerVad(), pool)
    parts = [silence(1.5), questions[0], silence(1.2), questions[1], silence(1)]
    found = turns(await events_of(detector, numpy.concatenate(parts)))
    ends = numpy.cumsum([len(part) / RATE * 1_000 for part in parts])
    expected = [(ends[0], ends[1]), (ends[2], ends[3])]
    assert len(found) == 2
    for (start, stop), (speech, end) in zip(found, expected, strict=True):
        assert speech - 450 < start < speech  # 300 ms of padding; a breath before the speech may count as speech
        assert end - 500 < stop < end + 200  # the recordings end with silence
    assert not detector.is_speaking
    detector.close()


@pytest.mark.parametrize(
    "sound",
    [
        pytest.param(silence(4), id="silence"),
        pytest.param(noise(4, 0.01), id="soft noise"),
        pytest.param(noise(4, 0.3), id="loud noise"),
        pytest.param(tone(4, 440), id="tone"),
        pytest.param(tone(4, 50) + tone(4, 100), id="hum"),
        pytest.param(numpy.concatenate([silence(0.5), noise(0.02, 0.5)] * 8), id="clicks"),
    ],
)
async def test_other_sounds_are_no_turns(pool: VoicePool, sound: numpy.ndarray) -> None:
    detector = TurnDetector(ServerVad(), pool)
    assert await events_of(detector, sound) == []
    detector.close()


async def test_speech_is_found_in_noise(pool: VoicePool, questions: list[numpy.ndarray]) -> None:
    sound = numpy.concatenate([silence(1), questions[0], silence(1)])
    detector = TurnDetector(ServerVad(), pool)
    [(start, stop)] = turns(await events_of(detector, sound + noise(len(sound) / RATE, 0.01)))
    assert 500 < start < 1_100
    assert 2_900 < stop < 3_700
    detector.close()


async def test_a_turn_ends_as_soon_as_the_silence_is_long_enough(
    pool: VoicePool, questions: list[numpy.ndarray]
) -> None:
    for question in questions:
        voiced = numpy.flatnonzero(numpy.abs(question) > 0.01 * numpy.abs(question).max())[-1] + 1
        for shift in range(0, 512, 128):  # the position of the windows relative to the speech
            sound = numpy.concatenate([silence(1 + shift / RATE), question[:voiced], silence(1)])
            detector = TurnDetector(ServerVad(silence_duration_ms=512), pool)
            heard = 0
            for start in range(0, len(sound), 160):
                heard = start + 160
                if any(isinstance(event, SpeechStopped) for event in await detector.feed(sound[start:heard])):
                    break
            waited = (heard - (len(silence(1 + shift / RATE)) + voiced)) / 16
            assert abs(waited - 512) <= 32 + 10
            detector.close()


@pytest.mark.parametrize("options", [ServerVad(silence_duration_ms=200), SemanticVad()])
async def test_chunks_of_any_length_give_the_same_events(
    pool: VoicePool, questions: list[numpy.ndarray], options: ServerVad | SemanticVad
) -> None:
    sound = numpy.concatenate([noise(0.7, 0.003), questions[0], silence(0.3), questions[1], silence(1)])
    found = []
    for chunk in (37, 320, 511, 512, 513, 4_000, len(sound)):
        detector = TurnDetector(options, pool)
        found.append(await events_of(detector, sound, chunk))
        detector.close()
    assert len(found[0]) > 2
    assert all(events == found[0] for events in found)


async def test_times_count_from_the_beginning_of_the_session(pool: VoicePool, questions: list[numpy.ndarray]) -> None:
    sound = numpy.concatenate([silence(0.5), questions[0], silence(1)])
    plain = TurnDetector(ServerVad(), pool)
    [(start, stop)] = turns(await events_of(plain, sound))
    later = TurnDetector(ServerVad(), pool, heard=160_001)
    assert turns(await events_of(later, sound[15:])) == [(start + 10_001, stop + 10_001)]
    plain.close()
    later.close()


async def test_a_candidate_tells_the_end_of_the_turn(pool: VoicePool, questions: list[numpy.ndarray]) -> None:
    detector = TurnDetector(ServerVad(), pool)
    events = await events_of(detector, numpy.concatenate([silence(0.5), questions[0], silence(1)]))
    candidates = [event for event in events if isinstance(event, PauseCandidate)]
    resumed = [event for event in events if isinstance(event, SpeechResumed)]
    assert isinstance(events[-1], SpeechStopped)
    assert len(candidates) == len(resumed) + 1
    assert candidates[-1].at_ms == events[-1].at_ms
    detector.close()


async def test_after_a_reset_a_turn_begins_anew(pool: VoicePool, questions: list[numpy.ndarray]) -> None:
    detector = TurnDetector(ServerVad(), pool)
    cut = 20_000
    [started] = await events_of(detector, numpy.concatenate([silence(0.2), questions[0]])[:cut])
    assert isinstance(started, SpeechStarted)
    assert detector.is_speaking
    detector.reset()
    assert not detector.is_speaking
    rest = numpy.concatenate([silence(0.2), questions[0], silence(1)])[cut:]
    [(start, _)] = turns(await events_of(detector, rest))
    assert start >= cut / 16
    detector.close()


async def test_a_model_that_is_reused_has_forgotten(pool: VoicePool, questions: list[numpy.ndarray]) -> None:
    sound = numpy.concatenate([questions[1][4_000:], silence(0.6)])
    first = TurnDetector(ServerVad(), pool)
    expected = await events_of(first, sound)
    await events_of(first, questions[0])
    first.close()
    second = TurnDetector(ServerVad(), pool)
    assert await events_of(second, sound) == expected
    second.close()


async def test_many_sessions_at_once_do_not_mix(pool: VoicePool, questions: list[numpy.ndarray]) -> None:
    sounds = [
        numpy.concatenate(
            [silence(0.1 * index), questions[index % 2], silence(0.7), questions[index // 2 % 2], silence(1)]
        )
        for index in range(12)
    ]
    alone = []
    for sound in sounds:
        detector = TurnDetector(ServerVad(), pool)
        alone.append(await events_of(detector, sound, 1_600))
        detector.close()
    detectors = [TurnDetector(ServerVad(), pool) for _ in sounds]
    together = await asyncio.gather(
        *(events_of(detector, sound, 1_600) for detector, sound in zip(detectors, sounds, strict=True))
    )
    assert together == alone
    for detector in detectors:
        detector.close()


async def test_a_cancelled_session_gives_its_model_back(pool: VoicePool, questions: list[numpy.ndarray]) -> None:
    sound = numpy.concatenate([questions[0], silence(1)])
    first = TurnDetector(ServerVad(), pool)
    expected = await events_of(first, sound)
    first.close()
    for _ in range(20):
        detector = TurnDetector(ServerVad(), pool)
        feeding = asyncio.create_task(detector.feed(numpy.tile(sound, 10)))
        await asyncio.sleep(RANDOM.uniform(0, 0.05))
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
        detector.close()
    last = TurnDetector(ServerVad(), pool)
    assert await events_of(last, sound) == expected
    last.close()
