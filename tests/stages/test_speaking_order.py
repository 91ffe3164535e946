"""The order of work decides whether listeners hear gaps. The tests run the real orders in a simulation."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import pytest

from stages.code2wav import chunk_order, start_reserve
from stages.code2wav.chunk_cost import ChunkCost
from stages.code2wav.chunk_order import (
    LONGEST_HOLD_SECONDS,
    PATIENCE_SECONDS,
    ArrivalOrder,
    ChunkOrder,
    ListenerOrder,
    NextChunk,
)
from stages.messages import Playing, TextPace
from stages.talker_ar.text_pace import TextOrder
from stages.talker_ar.voice_order import VoiceOrder
from tests.stages.speaking import Laws, Speakers, Utterance

SIZES = (1, 1, 2, 3, 4, 6)

# The approximate durations of the demo model's work on one core. In a second, the vocoder makes 32 s of sound with full
# chunks, and 13 s with chunks of one frame.
CPU = Laws(prompt=0.02, step=lambda voices: 0.004 + 0.0004 * voices, chunk=lambda _, frames: 0.004 + 0.002 * frames)


# The durations of work from `scripts/step_law`. They are approximately the durations of a 30B model on GPUs. With
# `GPU`, the stages that speak have a GPU. With `ONE_GPU`, all stages have one GPU, so each frame also waits for the
# thinker and the vocoder.
GPU = Laws(
    prompt=0.009,
    step=lambda voices: 0.0198 + 0.00117 * voices,
    chunk=lambda voices, frames: 0.0028 + 0.00042 * voices * frames,
)
ONE_GPU = Laws(prompt=0.025, step=lambda voices: 0.0358 + 0.0021 * voices, chunk=lambda voices, frames: 0.0)


def first_come(slots: int = 64) -> tuple[None, ChunkOrder]:
    return None, ArrivalOrder(SIZES, slots, 1)


def just_in_time(slots: int = 64) -> tuple[VoiceOrder, ChunkOrder]:
    return VoiceOrder(), ListenerOrder(SIZES, slots, 1)


def closed_loop(streams: int, answers: int, frames: int, seed: int) -> list[Utterance]:
    """The utterances of `streams` clients. Each client requests its next answer as soon as it has the previous one. The
    clients begin at random times within the first second.
    """
    dice = random.Random(seed)
    utterances = []
    for stream in range(streams):
        chain = [Utterance(f"{stream}-{number}", 0.0, frames) for number in range(answers)]
        chain[0].begins = dice.random()
        for each, following in itertools.pairwise(chain):
            each.then = following
        utterances += chain
    return utterances


def gapless(utterances: Sequence[Utterance]) -> float:
    assert all(each.ended_at is not None and each.heard == each.frames for each in utterances)
    return sum(not each.player.underruns for each in utterances) / len(utterances)


def play(utterances: Sequence[Utterance], orders: tuple[VoiceOrder | None, ChunkOrder], laws: Laws = CPU) -> None:
    later = {id(each.then) for each in utterances}
    Speakers(laws, *orders).run([each for each in utterances if id(each) not in later])


@pytest.mark.parametrize("streams", [1, 8, 16, 20, 24])
def test_answers_play_without_a_gap_up_to_the_throughput(streams: int) -> None:
    """A full chunk of 6 frames takes 16 ms for 480 ms of sound, so no order can play more than 30 streams."""
    utterances = closed_loop(streams, 8, 60, seed=streams)
    play(utterances, just_in_time())
    assert gapless(utterances) >= 0.99


@pytest.mark.parametrize(("laws", "streams"), [(GPU, 32), (ONE_GPU, 10)])
def test_answers_play_without_a_gap_when_frames_come_only_a_little_faster_than_they_are_played(
    laws: Laws, streams: int
) -> None:
    """Each listener gets 1.3 seconds of sound per second. At this rate, playing cannot start with the first frame. The
    later chunks are longer, so the player would run out of sound before a later chunk is complete.
    """
    utterances = closed_loop(streams, 6, 60, seed=streams)
    play(utterances, (VoiceOrder(), ListenerOrder((*SIZES, 8), 256, 256)), laws)
    assert gapless(utterances) >= 0.99


@pytest.mark.parametrize("streams", [16, 20])
def test_answers_start_later_if_the_steps_are_irregular(streams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 33rd step, on average, takes 200 ms longer, so the mean pace says too little about the next chunk. Without
    the reserve that is learned from late chunks, there are more than twice as many answers with gaps.
    """

    def gaps() -> float:
        dice = random.Random(streams)
        laws = Laws(
            prompt=0.02,
            step=lambda voices: 0.01 + 0.0018 * voices + (0.2 if dice.random() < 0.03 else 0.0),
            chunk=lambda _, frames: 0.004 + 0.001 * frames,
        )
        utterances = closed_loop(streams, 20, 60, seed=streams)
        play(utterances, (VoiceOrder(), ListenerOrder((*SIZES, 8), 64, 1)), laws)
        return 1 - gapless(utterances)

    learned = gaps()
    monkeypatch.setattr(start_reserve, "GROWTH_SECONDS", 0.0)
    assert 2 * learned < gaps()


@pytest.mark.parametrize(("streams", "chunk"), [(8, (0.02, 0.003)), (12, (0.025, 0.001)), (12, (0.02, 0.003))])
def test_answers_that_begin_together_do_not_start_before_the_vocoder_can_serve_them_all(
    streams: int, chunk: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first chunks are short, so each of them takes long for the sound that it gives. If only the next chunk of
    each player is considered, too many answers start at once, and their later chunks come too late.
    """
    per_chunk, per_frame = chunk
    laws = Laws(
        prompt=0.01, step=lambda voices: 0.01 + 0.001 * voices, chunk=lambda _, frames: per_chunk + per_frame * frames
    )

    def gaps() -> int:
        utterances = closed_loop(streams, 6, 60, seed=1)
        for each in utterances:
            each.begins = 0.0
        play(utterances, (VoiceOrder(), ListenerOrder((*SIZES, 8), 64, 1)), laws)
        return round((1 - gapless(utterances)) * len(utterances))

    assert gaps() == 0
    monkeypatch.setattr(chunk_order, "AHEAD_SECONDS", 0.0)
    assert gaps() > 0


def test_a_long_delay_of_one_frame_is_no_pace() -> None:
    """The first request of a talker may wait for seconds, while code is compiled. Later answers do not pay for it."""

    def held(delay: float) -> float:
        order = ListenerOrder(SIZES, 8, 1)
        order.begin("first", streamed=True)
        order.add_frame("first", 0.0)
        order.add_frame("first", delay)
        now = 10.0
        order.begin("second", streamed=True)
        while not order.next_chunk(now).request_ids:
            order.add_frame("second", now)
            now += 0.02
        return now - 10.0

    assert held(60.0) == held(0.5) < 0.3


def test_chunks_measured_before_the_first_request_are_known() -> None:
    cost = ChunkCost()
    cost.note(6, 2.0)  # so slow that a second utterance must not start while the first is playing
    for known, starts in ((cost, []), (None, ["second"])):
        order = ListenerOrder(SIZES, 8, 1, known)
        for request_id in ("first", "second"):
            order.begin(request_id, streamed=True)
            order.add_frame(request_id, 1.0)
        order.end("first", 1.0)
        [first] = order.next_chunk(1.0).request_ids
        order.forget(first)
        order.begin("third", streamed=True)
        assert order.next_chunk(1.0).request_ids == starts


def test_first_come_first_served_stutters_long_before() -> None:
    utterances = closed_loop(16, 8, 60, seed=16)
    play(utterances, first_come())
    assert gapless(utterances) < 0.9


def test_order_costs_little_throughput() -> None:
    """In this test, each stage has its own processor. So when utterances with a large lead wait for other utterances, a
    stage may be idle.
    """
    spans = []
    for orders in (first_come(), just_in_time()):
        utterances = closed_loop(16, 8, 60, seed=3)
        play(utterances, orders)
        spans.append(max(each.ended_at or 0.0 for each in utterances))
    assert spans[1] <= 1.1 * spans[0]


def test_nobody_waits_while_nobody_else_is_short() -> None:
    """A single answer is as fast with `just_in_time` as with `first_come`. Both orders use the same chunk sizes."""
    for frames in (1, 5, 200):
        ends = []
        for orders in (first_come(), just_in_time()):
            alone = Utterance("alone", 0.0, frames)
            play([alone], orders)
            ends.append((alone.first_at, alone.ended_at))
        assert ends[0] == ends[1]


def test_whole_answers_are_not_delayed_by_listeners() -> None:
    """A quarter of the answers are not streamed. With `just_in_time`, these answers take hardly longer than with
    `first_come`.
    """
    times = []
    for orders in (first_come(), just_in_time()):
        utterances = closed_loop(12, 8, 60, seed=5)
        for each in utterances:
            each.streamed = int(each.name.split("-")[0]) % 4 != 0
        play(utterances, orders)
        whole = [(each.ended_at or 0.0) - each.begins for each in utterances if not each.streamed]
        times.append(sum(whole) / len(whole))
    assert times[1] <= 1.15 * times[0]


@pytest.mark.parametrize("seed", range(20))
def test_every_answer_ends_and_begins_in_bounded_time(seed: int) -> None:
    """The arrivals, lengths and slots are random, and some of the loads are far beyond the throughput. Every utterance
    ends. While frames of a complete or unstreamed utterance wait, the vocoder does not rest longer than documented.
    """
    dice = random.Random(seed)
    count, slots = dice.randint(1, 60), dice.choice([2, 8, 64])
    utterances = [
        Utterance(f"u{number}", dice.uniform(0, 4), dice.randint(1, 80), streamed=dice.random() < 0.7)
        for number in range(count)
    ]
    watch = Watch(ListenerOrder(SIZES, slots, 1))
    play(utterances, (VoiceOrder(), watch))
    assert all(each.ended_at is not None and each.heard == each.frames for each in utterances)
    assert watch.longest_idle <= LONGEST_HOLD_SECONDS + 2 * CPU.chunk(1, max(SIZES))


class Watch(ListenerOrder):
    """Measures how long frames wait while the vocoder does nothing."""

    longest_idle = 0.0
    _idle_since: float | None = None

    def __init__(self, order: ListenerOrder) -> None:
        self.__dict__.update(order.__dict__)

    def next_chunk(self, now: float) -> NextChunk:
        chunk = super().next_chunk(now)
        ready = any(each.waiting for each in self._utterances.values() if each.ended or not each.streamed)
        if chunk.request_ids or not ready:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        if self._idle_since is not None:
            self.longest_idle = max(self.longest_idle, now - self._idle_since)
        return chunk


def test_an_overloaded_vocoder_starts_everybody_in_the_end() -> None:
    """There are far more listeners than the vocoder can serve. Each listener hears something after at most
    `LONGEST_HOLD_SECONDS`, `PATIENCE_SECONDS` and one turn.
    """
    utterances = [Utterance(f"u{number}", 0.0, 60) for number in range(50)]
    play(utterances, just_in_time())
    turn = 50 * (CPU.prompt + CPU.chunk(1, 8))
    for each in utterances:
        assert each.first_at is not None
        assert each.first_at <= LONGEST_HOLD_SECONDS + PATIENCE_SECONDS + turn


def test_a_start_waits_until_the_next_chunk_will_be_in_time() -> None:
    """The utterance `slow` has just got its first frames, 150 ms apart. At this pace, an utterance that starts with few
    frames would have late chunks. But the frames of the utterance `new` come at once, so the mean pace soon gets
    better.
    """
    order = ListenerOrder(SIZES, 8, 1)
    order.begin("slow", streamed=True)
    for number in range(3):
        order.add_frame("slow", 0.15 * number)
    order.sent(order.next_chunk(0.3), 0.3, 0.3)
    assert order.next_chunk(0.3).request_ids == ["slow"]
    order.sent(order.next_chunk(0.3), 0.3, 0.3)
    order.begin("new", streamed=True)
    waited = []
    for _ in range(4):
        order.add_frame("new", 0.3)
        waited.append("new" not in order.next_chunk(0.3).request_ids)
    assert waited == [True, True, True, False]
    order = ListenerOrder(SIZES, 8, 1)
    order.begin("other", streamed=True)
    order.begin("new", streamed=True)
    order.add_frame("new", 0.0)
    assert order.next_chunk(0.0) == NextChunk(["new"], 1)


@pytest.mark.parametrize("make", [first_come, just_in_time])
def test_utterances_wait_for_a_slot(make: Callable[..., tuple[VoiceOrder | None, ChunkOrder]]) -> None:
    utterances = [Utterance(f"u{number}", 0.0, 12, streamed=number % 2 == 0) for number in range(9)]
    order, chunks = make(slots=2)
    decoding: set[str] = set()
    sent, forget = chunks.sent, chunks.forget

    def send(chunk: NextChunk, began: float, now: float) -> object:
        decoding.update(chunk.request_ids)
        assert len(decoding) <= 2
        return sent(chunk, began, now)

    def leave(name: str) -> None:
        decoding.discard(name)
        forget(name)

    chunks.sent, chunks.forget = send, leave  # type: ignore[method-assign, assignment]
    play(utterances, (order, chunks))
    assert all(each.ended_at is not None for each in utterances)


def test_utterances_that_can_be_decoded_together_are_one_batch() -> None:
    order = ListenerOrder(SIZES, 8, 4)
    for name in "abcdef":
        order.begin(name, streamed=True)
        for _ in range(3):
            order.add_frame(name, 0.0)
    chunk = order.next_chunk(0.0)
    assert chunk == NextChunk(["a", "b", "c", "d"], 1)
    order.sent(chunk, 0.0, 0.01)
    assert order.next_chunk(0.01) == NextChunk(["e", "f"], 1)


# --- the talker -------------------------------------------------------------------------------------------------------


def leads(**seconds: float) -> VoiceOrder:
    """An order in which each utterance has this lead at the time 0."""
    order = VoiceOrder()
    for name, lead in seconds.items():
        order.begin(name, streamed=True)
        order.play_since(name, lead)
    return order


@pytest.mark.parametrize(
    ("order", "behind", "going"),
    [
        (leads(a=9.0, b=0.5), False, "ab"),  # all listeners have enough sound
        (leads(a=9.0, b=0.3), False, "b"),
        (leads(a=1.7, b=0.3), False, "ab"),  # a joins the step that is made for b
        (leads(a=1.9, b=0.3), False, "b"),
        (leads(a=9.0, b=1.1), True, ""),
        (leads(a=9.0, b=0.9), True, "b"),
        (leads(a=1.4, b=0.9), True, "ab"),
    ],
)
def test_a_step_is_made_for_those_who_need_it(order: VoiceOrder, behind: bool, going: str) -> None:
    order.behind = behind
    assert order.next_step("ab", 0.0, running=False) == list(going)


def test_those_who_wait_join_a_step_that_is_made_anyway() -> None:
    order = leads(a=1.4, b=9.0)
    order.behind = True
    assert order.next_step("ab", 0.0, running=False) == []
    assert order.next_step("ab", 0.0, running=True) == ["a"]


def test_the_talker_wakes_when_a_lead_no_longer_suffices() -> None:
    order = leads(a=2.0, b=0.3)
    assert order.wakes_at([], 0.0) is None
    assert order.wakes_at(["a"], 0.0) == pytest.approx(0.7)
    assert order.next_step("a", 0.71, running=False) == ["a"]
    order.forget("b")
    assert order.wakes_at(["a"], 0.0) == 0.0  # no other listener is short of sound any more


def test_only_players_that_have_begun_are_urgent() -> None:
    order = leads(a=0.2, b=0.3)
    order.begin("new", streamed=True)
    assert order.urgent(["b", "a"], 0.0)
    assert not order.urgent(["b", "new"], 0.0)


def test_an_utterance_whose_player_is_unknown_does_not_wait_for_others() -> None:
    """The vocoder sends no data about players if its own order is turned off."""
    order = leads(short=0.1)
    order.begin("unknown", streamed=True)
    for _ in range(100):
        order.make_frame("unknown")
        assert order.next_step(["unknown"], 0.0, running=False) == ["unknown"]


def test_texts_go_on_together() -> None:
    order = TextOrder()
    assert order.pace({"a": 13, "b": 14, "c": 2}, pressed=True) == TextPace(["a", "b"], [])
    assert order.pace({"a": 9, "b": 14, "c": 2}, pressed=True) is None
    assert order.pace({"a": 6, "b": 11, "c": 13}, pressed=True) == TextPace(["c"], ["a", "b"])
    assert order.pace({"a": 20, "c": 13}, pressed=False) == TextPace([], ["c"])
    assert order.pace({"a": 20, "c": 13}, pressed=False) is None


def test_a_text_that_has_ended_is_forgotten() -> None:
    order = TextOrder()
    order.pace({"a": 13}, pressed=True)
    assert order.pace({}, pressed=False) is None


# --- the vocoder's pace -----------------------------------------------------------------------------------------------


def test_the_cost_of_a_chunk_is_learned() -> None:
    cost = ChunkCost()
    assert cost.seconds(8) == 0.0
    cost.note(4, 0.02)
    assert cost.seconds(4) == pytest.approx(0.02)
    assert 0.0 < cost.seconds(1) < cost.seconds(8)
    for _ in range(30):
        for frames in (1, 2, 8):
            cost.note(frames, 0.004 + 0.002 * frames)
    for frames in range(1, 9):
        assert cost.seconds(frames) == pytest.approx(0.004 + 0.002 * frames, rel=0.02)
    for _ in range(200):  # the load of the machine has changed
        for frames in (1, 2, 8):
            cost.note(frames, 2 * (0.004 + 0.002 * frames))
    assert cost.seconds(8) == pytest.approx(0.04, rel=0.02)


def test_the_vocoder_says_when_it_falls_behind_and_when_it_has_caught_up() -> None:
    order = ListenerOrder(SIZES, 8, 1)
    for name in "ab":
        order.begin(name, streamed=False)
        for _ in range(200):
            order.add_frame(name, 0.0)
    told = []
    now = 0.0
    while (chunk := order.next_chunk(now)).request_ids:
        began, now = now, now + 0.02
        told.append(order.sent(chunk, began, now))
    advice = [each for each in told if each is not None]
    assert advice == [Playing({}, behind=True), Playing({}, behind=False)]
