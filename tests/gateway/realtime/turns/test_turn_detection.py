"""Turns are detected from the probabilities of speech."""

from __future__ import annotations

import pytest

from gateway.realtime.turns.turn_detection import (
    IdleTimeout,
    PauseCandidate,
    SpeechResumed,
    SpeechStarted,
    SpeechStopped,
    TurnEvent,
    TurnTracker,
)
from gateway.realtime.turns.turn_options import Eagerness, SemanticVad, ServerVad, TurnOptions

VOICE, BETWEEN, QUIET = 0.9, 0.4, 0.1
LOUD, FAINT = 0.2, 0.0019


def follow(tracker: TurnTracker, *runs: tuple[float, int], loudness: float = LOUD) -> list[TurnEvent]:
    """The events that follow from `runs`. A run is a probability of speech, and the number of successive windows that
    have it.
    """
    return [event for probability, count in runs for _ in range(count) for event in tracker.hear(probability, loudness)]


def times(tracker: TurnTracker, *runs: tuple[float, int]) -> list[tuple[int, TurnEvent]]:
    """Like `follow`. Each event comes with the time at which it was reported, in ms since the beginning of the first
    window.
    """
    found = []
    now = 0
    for probability, count in runs:
        for _ in range(count):
            now += 32
            found += [(now, event) for event in tracker.hear(probability, LOUD)]
    return found


def test_a_turn_has_its_padding_and_a_fixed_tail() -> None:
    assert times(TurnTracker(ServerVad()), (QUIET, 20), (VOICE, 10), (QUIET, 30)) == [
        (640 + 96, SpeechStarted(640 - 300)),
        (960 + 192, PauseCandidate(960 + 160)),
        (960 + 480, SpeechStopped(960 + 160)),
    ]


def test_the_padding_ends_at_the_beginning_and_at_the_turn_before() -> None:
    tracker = TurnTracker(ServerVad(prefix_padding_ms=1_000))
    assert follow(tracker, (VOICE, 5), (QUIET, 20), (VOICE, 5)) == [
        SpeechStarted(0),
        PauseCandidate(160 + 160),
        SpeechStopped(160 + 160),
        SpeechStarted(160 + 160),
    ]


def test_a_click_is_no_speech() -> None:
    tracker = TurnTracker(ServerVad())
    assert follow(tracker, *[(VOICE, 2), (QUIET, 1)] * 20) == []
    assert follow(tracker, (VOICE, 1), (BETWEEN, 1), (VOICE, 1), (BETWEEN, 1), (VOICE, 1)) != []


def test_windows_in_between_neither_begin_nor_end_speech() -> None:
    tracker = TurnTracker(ServerVad())
    assert follow(tracker, (BETWEEN, 100)) == []
    assert follow(tracker, (VOICE, 3), (BETWEEN, 100)) == [SpeechStarted(3_200 - 300)]
    assert follow(tracker, (QUIET, 1), (BETWEEN, 11))[-1] == SpeechStopped((203 - 3) * 32 + 160)


@pytest.mark.parametrize("count", range(6))
def test_a_pause_is_counted_from_the_windows_before_it_that_are_not_voiced_or_faint(count: int) -> None:
    counted = min(count, 3) * 32
    begin = 320 + count * 32
    for probability, loudness in ((BETWEEN, LOUD), (BETWEEN, FAINT), (VOICE, FAINT)):
        tracker = TurnTracker(ServerVad())
        follow(tracker, (VOICE, 10))
        assert follow(tracker, (probability, count), loudness=loudness) == []
        assert times(tracker, (QUIET, 30)) == [
            (192 - counted, PauseCandidate(begin - counted + 160)),
            (480 - counted, SpeechStopped(begin - counted + 160)),
        ]


def test_a_pause_is_not_counted_from_before_the_last_loud_voice() -> None:
    tracker = TurnTracker(ServerVad())
    follow(tracker, (VOICE, 10), (BETWEEN, 2), (VOICE, 1))
    assert times(tracker, (QUIET, 30))[-1] == (480, SpeechStopped(13 * 32 + 160))


def test_faint_is_in_comparison_with_the_turn() -> None:
    tracker = TurnTracker(ServerVad())
    follow(tracker, (VOICE, 10), (QUIET, 40))
    follow(tracker, (VOICE, 10), loudness=FAINT)
    assert times(tracker, (QUIET, 30))[-1] == (480, SpeechStopped(60 * 32 + 160))


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.95, 1.0])
def test_any_threshold_finds_a_beginning_and_an_end(threshold: float) -> None:
    tracker = TurnTracker(ServerVad(threshold=threshold))
    kinds = [type(event) for event in follow(tracker, (threshold, 3), (threshold * 0.49, 30))]
    assert kinds == [SpeechStarted, PauseCandidate, SpeechStopped]
    assert follow(tracker, (threshold - 0.01, 100)) == []


@pytest.mark.parametrize("silence", [0, 31, 32, 100, 192, 200, 500, 1_000, 10_000])
def test_silence_is_counted_in_whole_windows(silence: int) -> None:
    found = times(TurnTracker(ServerVad(silence_duration_ms=silence)), (VOICE, 3), (QUIET, 400))
    waited = max(32, silence // 32 * 32)
    end = 96 + min(waited, 160)
    assert found[-1] == (96 + waited, SpeechStopped(end))
    assert found[1:-1] == ([(96 + 192, PauseCandidate(end))] if waited > 192 else [])


def test_speech_after_a_candidate_goes_on_with_the_turn() -> None:
    found = follow(TurnTracker(ServerVad()), (VOICE, 5), (QUIET, 7), (VOICE, 1), (QUIET, 5), (VOICE, 1), (QUIET, 15))
    assert found == [
        SpeechStarted(0),
        PauseCandidate(160 + 160),
        SpeechResumed(384),
        PauseCandidate(608 + 160),
        SpeechStopped(608 + 160),
    ]


def test_settings_change_during_a_pause() -> None:
    tracker = TurnTracker(ServerVad(silence_duration_ms=2_000))
    follow(tracker, (VOICE, 5), (QUIET, 30))
    tracker.options = ServerVad()
    assert follow(tracker, (QUIET, 1)) == [SpeechStopped(160 + 160)]


def test_a_forgotten_turn_leaves_no_events_and_no_sound() -> None:
    tracker = TurnTracker(ServerVad())
    follow(tracker, (VOICE, 5), (QUIET, 8))
    tracker.forget_turn(13 * 32)
    assert follow(tracker, (QUIET, 50)) == []
    tracker.forget_turn(63 * 32)
    assert follow(tracker, (VOICE, 3)) == [SpeechStarted(63 * 32)]


# --- idle time ---


IDLE = ServerVad(idle_timeout_ms=5_000)


def test_idle_time_begins_when_the_answer_has_been_played() -> None:
    tracker = TurnTracker(IDLE)
    assert follow(tracker, (QUIET, 400)) == []
    tracker.expect_speech(after_ms=1_000)
    assert times(tracker, (QUIET, 400)) == [(6_016, IdleTimeout(12_800 + 1_000, 12_800 + 6_016))]


@pytest.mark.parametrize("options", [ServerVad(), SemanticVad()])
def test_without_a_setting_there_is_no_idle_time(options: TurnOptions) -> None:
    tracker = TurnTracker(options)
    tracker.expect_speech(after_ms=0)
    assert follow(tracker, (QUIET, 2_000)) == []


def test_speech_or_an_answer_ends_the_idle_time() -> None:
    tracker = TurnTracker(IDLE)
    tracker.expect_speech(after_ms=0)
    assert IdleTimeout not in [type(event) for event in follow(tracker, (VOICE, 3), (QUIET, 400))]
    tracker.expect_speech(after_ms=0)
    tracker.expect_nothing()
    assert follow(tracker, (QUIET, 400)) == []


# --- semantic_vad ---


def waits(eagerness: Eagerness, *before: tuple[float, int]) -> int:
    """The length of the silence after which a turn ends, in ms."""
    tracker = TurnTracker(SemanticVad(eagerness=eagerness))
    follow(tracker, *before)
    found = times(tracker, (QUIET, 400))
    return next(now for now, event in found if isinstance(event, SpeechStopped))


@pytest.mark.parametrize(
    ("eagerness", "usual", "longest"),
    [("low", 1_000, 8_000), ("medium", 600, 4_000), ("auto", 600, 4_000), ("high", 400, 2_000)],
)
def test_a_thoughtful_speaker_gets_more_time(eagerness: Eagerness, usual: int, longest: int) -> None:
    def windows(ms: float) -> int:
        return int(ms) // 32 * 32

    assert waits(eagerness, (VOICE, 20)) == windows(usual)
    assert waits(eagerness, (VOICE, 3)) == windows(2 * usual)
    pause = windows(usual) - 32  # the turn continues, and the next pause may be longer
    thinking = [(VOICE, 20), (QUIET, pause // 32)] * 2
    assert waits(eagerness, *thinking, (VOICE, 1)) == windows(1.5 * pause)
    ever_longer: list[tuple[float, int]] = [(VOICE, 20)]
    for _ in range(20):
        ever_longer += [(QUIET, waits(eagerness, *ever_longer) // 32 - 1), (VOICE, 1)]
    assert waits(eagerness, *ever_longer) == windows(longest)
