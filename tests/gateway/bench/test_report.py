"""Tests the results that are computed from the timelines of requests."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from gateway.bench.baseline import BaselineAnswer
from gateway.bench.plot import draw
from gateway.bench.report import (
    BenchReport,
    LevelReport,
    Load,
    Round,
    Throughput,
    compare,
    is_gapless,
    right_length,
    summarise,
    summarise_mix,
    throughput,
)
from gateway.bench.scenarios import Output, Scenario
from gateway.bench.timeline import AudioChunk, Failure, PromptTokens, RequestTimes

TEXT = Scenario(tokens=3)
SPEECH = Scenario(tokens=3, output=Output.SPEECH, audio_frames=25)
STEADY = [AudioChunk(0.5, 1.0), AudioChunk(1.0, 1.0)]
BROKEN = [AudioChunk(0.5, 1.0), AudioChunk(1.75, 1.0)]


def timeline(texts: list[float], ended: float, **more: Any) -> RequestTimes:
    return RequestTimes(texts=texts, ended=ended, **({"tokens": len(texts)} | more))


def failed(code: str, message: str = "no", param: str | None = None) -> RequestTimes:
    return RequestTimes(texts=[0.125], ended=9.0, failure=Failure(code, message, 400, param))


def test_text_figures() -> None:
    report = summarise(TEXT, Load(2), [timeline([1.0, 1.5, 2.0], 2.5), timeline([3.0, 3.25, 4.0], 4.5)], seconds=4.0)
    assert (report.ttft.p50, report.e2e.p50) == (2.0, 3.5)
    assert (report.inter_token.count, report.inter_token.mean, report.inter_token.max) == (4, 0.5, 0.75)
    assert (report.requests_per_second, report.tokens_per_second) == (0.5, 1.5)
    assert (report.ttfa, report.rtf, report.continuous, report.underruns) == (None, None, None, None)


def test_share_of_cached_prompts() -> None:
    answers = [timeline([1.0], 2.5, prompt=prompt) for prompt in (PromptTokens(100, 10), PromptTokens(300, 290), None)]
    assert summarise(TEXT, Load(2), answers, seconds=4.0).cached_share == 0.75
    assert summarise(TEXT, Load(2), answers[2:], seconds=4.0).cached_share is None
    # A server may report cached tokens, but not the number of all tokens.
    partial = timeline([1.0], 2.5, prompt=PromptTokens(0, 0))
    assert summarise(TEXT, Load(2), [partial], seconds=4.0).cached_share is None


def test_speech_figures() -> None:
    spoken = [timeline([0.25, 0.5, 0.75], 2.0, sounds=sounds) for sounds in (STEADY, BROKEN)]
    report = summarise(SPEECH, Load(2), spoken, seconds=2.0)
    assert report.ttfa.p50 == 0.5
    assert report.inter_chunk.mean == (0.5 + 1.25) / 2
    assert report.rtf.mean == (1.0 / 2 + 1.75 / 2) / 2
    assert report.continuous == 0.5
    assert (report.underruns.count, report.underruns.max) == (1, 0.25)
    assert report.audio_seconds_per_second == 2.0


def test_failed_requests_are_counted_by_code_and_left_out_of_the_rest() -> None:
    timelines = [timeline([1.0, 2.0, 3.0], 3.0), failed("full"), failed("odd", "what?", "ignore_eos"), failed("full")]
    report = summarise(TEXT, Load(1), timelines, seconds=3.0)
    assert (report.requests, report.completed) == (4, 1)
    assert {code: error.count for code, error in report.errors.items()} == {"full": 2, "odd": 1}
    assert report.errors["full"].explanation is None
    assert "--natural" in (report.errors["odd"].explanation or "")
    assert report.ttft is not None
    assert (report.ttft.count, report.tokens_per_second) == (1, 1.0)


def test_nothing_answered_has_no_latencies() -> None:
    report = summarise(SPEECH, Load(1), [failed("full")], seconds=1.0)
    assert (report.completed, report.ttft, report.e2e, report.requests_per_second) == (0, None, None, 0.0)


@pytest.mark.parametrize(
    ("scenario", "tokens", "audio_seconds", "right"),
    [
        (TEXT, 3, 0.0, True),
        (TEXT, 2, 0.0, False),
        (TEXT, None, 0.0, True),
        (Scenario(tokens=3, natural=True), 1, 0.0, True),
        (SPEECH, 3, (1920 * 25 - 555) / 24_000, True),
        (SPEECH, 3, 25 * 0.08, True),
        (SPEECH, 3, 23 * 0.08, False),
        (SPEECH, 2, 25 * 0.08, False),
    ],
    ids=["right", "short", "untold", "natural", "right speech", "padded speech", "short speech", "short text"],
)
def test_length_is_checked(scenario: Scenario, tokens: int | None, audio_seconds: float, right: bool) -> None:
    assert right_length(scenario, tokens, audio_seconds) is right


WHOLE = Scenario(tokens=3, output=Output.WHOLE_SPEECH, audio_frames=25)


def mixed_level() -> LevelReport:
    """A level with three kinds of answers: one text answer, one spoken stream, and two whole answers. One of the whole
    answers is short.
    """
    timelines = [
        timeline([1.0, 1.5, 2.0], 2.5),
        timeline([0.25, 0.5, 0.75], 2.0, sounds=STEADY),
        RequestTimes(ended=3.0, tokens=3, whole_seconds=2.0),
        RequestTimes(ended=4.0, tokens=3, whole_seconds=1.0),
    ]
    return summarise_mix([TEXT, SPEECH, WHOLE, WHOLE], Load(2), timelines, seconds=5.0)


def test_kinds_of_a_mix_are_reported_apart() -> None:
    kinds = mixed_level().kinds
    assert list(kinds) == [Output.TEXT, Output.SPEECH, Output.WHOLE_SPEECH]
    text, speech, whole = kinds.values()
    assert (text.ttft.p50, text.ttfa, text.continuous, text.e2e.p50) == (1.0, None, None, 2.5)
    assert (speech.ttft.p50, speech.ttfa.p50, speech.continuous, speech.e2e.p50) == (0.25, 0.5, 1.0, 2.0)
    assert (whole.ttft, whole.ttfa, whole.rtf, whole.continuous, whole.e2e.p50) == (None, None, None, None, 3.5)
    assert [part.wrong_length for part in (text, speech, whole)] == [0, 0, 1]
    assert [part.audio_seconds_per_second for part in (text, speech, whole)] == [0.0, 0.4, 0.6]


def test_mix_has_the_sums_of_its_kinds() -> None:
    report = mixed_level()
    assert (report.requests, report.completed, report.wrong_length) == (4, 4, 1)
    assert (report.requests_per_second, report.audio_seconds_per_second, report.continuous) == (0.8, 1.0, 1.0)


@pytest.mark.parametrize(
    ("one", "gapless"),
    [
        (timeline([0.25, 0.5, 0.75], 2.0, sounds=STEADY), True),
        (timeline([0.25, 0.5, 0.75], 2.0, sounds=BROKEN), False),
        (timeline([0.25, 0.5, 0.75], 2.0, sounds=STEADY[:1]), False),
        (timeline([0.25, 0.5], 2.0, sounds=STEADY), False),
        (timeline([0.25, 0.5, 0.75], 2.0), False),
        (timeline([0.25, 0.5, 0.75], 2.0, sounds=STEADY, failure=Failure("stream_cut", "no")), False),
    ],
    ids=["steady", "silence", "short speech", "short text", "no sound", "failed"],
)
def test_gapless_answer_is_complete_and_has_its_length(one: RequestTimes, gapless: bool) -> None:
    assert is_gapless(SPEECH, one) is gapless


def test_answer_of_any_length_without_sound_is_not_gapless() -> None:
    assert not is_gapless(Scenario(output=Output.SPEECH, natural=True), timeline([0.25], 2.0))


def test_throughput_counts_what_arrives_in_the_window() -> None:
    spoken = [timeline([0.25, 0.5, 0.75], 2.0, sounds=STEADY, began=began) for began in (8.75, 9.5, 11.5)]
    spoken.append(failed("full"))
    assert throughput(spoken, 10.0, 12.0) == Throughput(requests=2 / 2, tokens=6 / 2, audio_seconds=3.0 / 2)


def answer(seconds: float, frames: int = 0) -> BaselineAnswer:
    return BaselineAnswer(seconds=seconds, tokens=3, audio_samples=max(0, 1920 * frames - 555))


def test_reference_answers_a_round_one_after_the_other() -> None:
    streams = [timeline([0.5, 1.0, 1.5], 2.0), timeline([0.5, 1.0, 1.5], 2.0)]
    found = compare(TEXT, [Round(2.0, streams, [answer(3.0), answer(3.0)])])
    assert found.total_ratio == 3.0
    assert found.first_text_ratio == ((3.0 + 6.0) / 2) / 0.5
    assert found.first_audio_ratio is None


def test_first_audio_is_compared_with_the_references_end() -> None:
    spoken = timeline([0.25, 0.5, 0.75], 2.0, sounds=STEADY)
    found = compare(SPEECH, [Round(2.0, [spoken], [answer(4.0, frames=25)])])
    assert (found.total_ratio, found.first_text_ratio, found.first_audio_ratio) == (2.0, 16.0, 8.0)
    assert found.reference_wrong_length == 0


def test_ratios_are_medians_over_rounds() -> None:
    rounds = [Round(1.0, [timeline([1.0, 1.0, 1.0], 1.0)], [answer(seconds)]) for seconds in (2.0, 9.0, 3.0)]
    assert compare(TEXT, rounds).total_ratio == 3.0


def test_round_with_a_failure_does_not_count() -> None:
    good = Round(1.0, [timeline([1.0, 1.0, 1.0], 1.0)], [answer(2.0)])
    bad = Round(0.01, [failed("full")], [answer(2.0)])
    found = compare(TEXT, [good, bad])
    assert (found.rounds, found.total_ratio) == (1, 2.0)
    assert compare(TEXT, [bad]).total_ratio is None


def test_wrong_length_of_the_reference_is_counted() -> None:
    spoken = timeline([0.25, 0.5, 0.75], 2.0, sounds=STEADY)
    assert compare(SPEECH, [Round(2.0, [spoken], [answer(4.0, frames=9)])]).reference_wrong_length == 1


def test_plot_is_a_drawing_with_each_load_in_each_panel() -> None:
    spoken = timeline([0.25, 0.5, 0.75], 2.0, sounds=STEADY)
    levels = [summarise(SPEECH, load, [spoken], 2.0) for load in (Load(1), Load(8), Load(rate=2.5))]
    report = BenchReport(
        bench_version="0", url="u", model="<model>", started="now", seed=0, scenario=SPEECH, levels=levels
    )  # fmt: skip
    words = [element.text for element in ElementTree.fromstring(draw(report)).iter() if element.text]
    assert "<model>: text → speech" in words
    for title in ("first text, s", "first audio, s", "whole answer, s", "real-time factor"):
        assert words.count(title) == 1
    for load in ("1 stream", "8 streams", "2.5 req/s"):
        assert words.count(load) == 4


def test_plot_of_a_mix_has_a_bar_for_each_kind() -> None:
    report = BenchReport(
        bench_version="0", url="u", model="m", started="now", seed=0, scenario=SPEECH, levels=[mixed_level()]
    )  # fmt: skip
    words = [element.text for element in ElementTree.fromstring(draw(report)).iter() if element.text]
    counts = [words.count(f"2 streams, {kind}") for kind in ("text", "speech", "whole-speech")]
    assert counts == [2, 4, 1]  # text has TTFT and E2E, and a whole answer has only E2E
