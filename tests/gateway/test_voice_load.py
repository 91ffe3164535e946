"""Tests the estimate of how many spoken answers can be played at once. Some tests use only the estimate, and some also
use simulated stages.
"""

from __future__ import annotations

import random
from collections import deque

import pytest

from gateway.voice_load import FIRST_VOICES, MOST_LOAD, Voice, VoiceLoad
from stages.code2wav.chunk_order import ListenerOrder
from stages.playback import FRAME_SECONDS
from stages.talker_ar.voice_order import VoiceOrder
from tests.stages.speaking import Laws, NextChunk, Speakers, Utterance

SIZES = (1, 1, 2, 3, 4, 6, 8)
FRAMES = 60
LAWS = Laws(prompt=0.004, step=lambda n: 0.004 + 0.0012 * n, chunk=lambda n, frames: n * (0.002 + 0.0016 * frames))
"""Stages that make about 40 seconds of sound per second."""


class Doorkeeper(Speakers):
    """Admits utterances to the simulated stages in the order of their arrival, when the load has room."""

    def __init__(self, laws: Laws, *, held: bool) -> None:
        super().__init__(laws, VoiceOrder(), ListenerOrder(SIZES, 256, 1))
        self.load = VoiceLoad()
        self.most = 0
        self.waits: dict[str, float] = {}
        self._held = held
        self._queue: deque[Utterance] = deque()
        self._voices: dict[str, Voice] = {}

    def _begin(self, each: Utterance) -> None:
        self._queue.append(each)
        self._let_in()

    def _let_in(self) -> None:
        while self._queue and (not self._held or self.load.has_room(self.now)):
            each = self._queue.popleft()
            self.waits[each.name] = self.now - each.begins
            self._voices[each.name] = self.load.begin(self.now)
            self.most = max(self.most, self.load.voices)
            super()._begin(each)

    def _sent(self, chunk: NextChunk, began: float) -> None:
        super()._sent(chunk, began)
        for name in chunk.request_ids:
            self.load.hear(self._voices[name], chunk.frames * FRAME_SECONDS, self.now)
            if self._utterances[name].ended_at is not None:
                self.load.end(self._voices[name], self.now)
        self._let_in()


def listeners(count: int, answers: int, *, spread: float) -> tuple[list[Utterance], list[Utterance]]:
    """`count` listeners who hear one answer after the other. Returns their first answers, and all answers."""
    times = random.Random(5)
    first, every = [], []
    for listener in range(count):
        following = None
        for answer in reversed(range(answers)):
            following = Utterance(f"{listener}.{answer}", 0.0, FRAMES, then=following)
            every.append(following)
        following.begins = times.uniform(0, spread)
        first.append(following)
    return first, every


def gapless(utterances: list[Utterance]) -> float:
    return sum(not each.player.underruns for each in utterances) / len(utterances)


@pytest.mark.parametrize("spread", [0.0, 4.0])
def test_at_twice_the_capacity_those_let_in_play_without_a_gap_and_nobody_starves(spread):
    free = Doorkeeper(LAWS, held=False)
    first, every = listeners(80, 3, spread=spread)
    free.run(first)
    assert gapless(every) < 0.5, "without the limit most answers have gaps"

    kept = Doorkeeper(LAWS, held=True)
    first, every = listeners(80, 3, spread=spread)
    kept.run(first)
    assert all(each.ended_at is not None for each in every)
    assert gapless(every) >= 0.99
    assert 30 <= kept.most <= 42, "about as many as the stages make seconds of sound per second"
    assert kept.now < 1.1 * free.now, "hardly any sound per second is lost"
    longest = max(each.ended_at for each in every) / 3
    assert max(kept.waits.values()) < 1.5 * longest, "in turns: nobody waits much longer than a round of all listeners"


def test_below_the_capacity_nobody_waits():
    kept = Doorkeeper(LAWS, held=True)
    first, every = listeners(24, 4, spread=4.0)
    kept.run(first)
    assert max(kept.waits.values()) < 0.01
    assert gapless(every) == 1.0


def test_a_server_that_cannot_play_two_answers_at_once_plays_one_after_the_other():
    slow = Laws(prompt=0.05, step=lambda n: 0.05 * n, chunk=lambda n, frames: 0.002 * n * frames)
    kept = Doorkeeper(slow, held=True)
    first, every = listeners(12, 1, spread=0.0)
    kept.run(first)
    assert all(each.ended_at is not None for each in every)
    assert gapless(every[FIRST_VOICES:]) >= 0.75


def test_the_first_answers_have_room_before_anything_is_known():
    load = VoiceLoad()
    for _ in range(FIRST_VOICES):
        assert load.has_room(0.0)
        load.begin(0.0)
    assert not load.has_room(0.0)


def test_an_answer_has_room_as_soon_as_the_last_one_has_ended():
    load = VoiceLoad()
    voice = load.begin(0.0)
    for tick in range(1, 100):
        load.hear(voice, 0.05, 0.1 * tick)  # half of what a listener needs
    assert not load.has_room(9.9)
    load.end(voice, 10.0)
    load.end(voice, 10.0)
    assert load.voices == 0
    assert load.has_room(10.0)


def test_the_capacity_is_the_greatest_pace_until_a_player_is_about_to_be_silent():
    load = VoiceLoad()
    voice = load.begin(0.0)
    for tick in range(1, 41):
        load.hear(voice, 1.0, 0.1 * tick)
    assert load.capacity == pytest.approx(10, rel=0.1)
    for tick in range(41, 81):
        load.hear(voice, 0.2, 0.1 * tick)
    assert load.capacity == pytest.approx(10, rel=0.1), "the player has much to play"
    others = [load.begin(8.0) for _ in range(8)]
    assert not load.has_room(8.0), f"ten listeners would need more than {MOST_LOAD} of the capacity"
    load.hear(others[0], 0.08, 8.0)
    load.hear(voice, 0.2, 8.1)
    assert load.capacity == pytest.approx(3, rel=0.1), "a listener has nothing left to hear: the pace is all there is"
    assert not load.has_room(8.1)


def test_time_without_answers_does_not_lower_the_pace():
    load = VoiceLoad()
    voice = load.begin(0.0)
    for tick in range(1, 21):
        load.hear(voice, 1.0, 0.1 * tick)
    load.end(voice, 2.0)
    before = load.capacity
    voice = load.begin(100.0)
    load.hear(voice, 1.0, 100.1)
    assert load.capacity == pytest.approx(before, rel=0.1)
