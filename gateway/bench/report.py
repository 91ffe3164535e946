"""Defines the results of a run, and computes them from the timelines of its requests."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from gateway.bench.baseline import BaselineAnswer
from gateway.bench.capacity import Capacity
from gateway.bench.percentiles import Percentiles, percentiles_of
from gateway.bench.scenarios import FRAME_SECONDS, Output, Scenario, explanation
from gateway.bench.timeline import RequestTimes
from gateway.playback import Player


class Load(Struct, frozen=True):
    """The load on the server: requests in flight (closed loop), or requests per second (open loop)."""

    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g} req/s"
        return f"{self.concurrency} stream{'' if self.concurrency == 1 else 's'}"


class ErrorCount(Struct):
    """Requests that failed with the same error code: their number, the first message, and the flag that caused the
    error, if any.
    """

    count: int
    message: str
    explanation: str | None = None


class Round(Struct, frozen=True):
    """One set of requests. The server answers all requests of the set concurrently, and the reference answers one
    request after the other.

    Attributes:
        seconds: Time from sending the requests until the server had answered all of them.
        timelines: The server's answers.
        answers: The reference's answers.
    """

    seconds: float
    timelines: list[RequestTimes]
    answers: list[BaselineAnswer]


class Comparison(Struct):
    """A comparison of the server with the reference. In each round, the server answers first, and the reference answers
    after the server. The reference answers the requests of a round one after the other, and returns only complete
    answers.

    Each ratio is computed for every round. The field contains the median over the rounds. A ratio above 1 means that
    the server is faster.

    Attributes:
        rounds: Number of rounds in which every answer was complete. Only these rounds count.
        reference_seconds: Time that the reference needs for one request.
        total_ratio: Time until the reference has answered all requests of a round, divided by the time that the server
            needs for the same requests.
        first_text_ratio: Wait for a complete answer of the reference, divided by the wait for the first text of the
            server. Each wait is the median over the requests of the round.
        first_audio_ratio: The same as `first_text_ratio`, but with the wait for the first sound of the server.
        reference_wrong_length: Number of the reference's answers that differ from the requested length.
    """

    rounds: int
    reference_seconds: Percentiles | None
    total_ratio: float | None
    first_text_ratio: float | None
    first_audio_ratio: float | None
    reference_wrong_length: int


class LevelReport(Struct, kw_only=True):
    """The results of one scenario at one load. Times are in seconds; percentiles are over complete answers.

    Attributes:
        requests, completed: Number of requests sent, and number of requests answered to the end.
        errors: The failed requests, grouped by error code.
        wrong_length: Number of complete answers that differ from the requested length.
        seconds: Time during which requests were in progress.
        ttft, ttfa: Time from sending a request to its first text, and to its first sound.
        e2e: Time from sending a request to the end of its answer.
        inter_token: Time between successive events with text.
        inter_chunk: Time between successive events with sound.
        rtf: Real-time factor: the time until the last sound arrived, divided by the length of the sound (no unit).
        continuous: Fraction of the spoken answers that a player plays without an audible silence.
        underruns: Length of each audible silence.
        requests_per_second, tokens_per_second, audio_seconds_per_second: Throughput of all streams together.
        cached_share: Fraction of the prompts' tokens that came from the server's prefix cache; None if the server does
            not report cached tokens.
        client_cpu: CPU time of the bench itself, divided by the elapsed time; None if it was not measured.
        kinds: With mixed output, the results of each kind of answer. The other fields then cover all kinds.
        baseline: The comparison, with ``--baseline``.
    """

    load: Load
    requests: int
    completed: int
    errors: dict[str, ErrorCount]
    wrong_length: int
    seconds: float
    ttft: Percentiles | None
    ttfa: Percentiles | None
    e2e: Percentiles | None
    inter_token: Percentiles | None
    inter_chunk: Percentiles | None
    rtf: Percentiles | None
    continuous: float | None
    underruns: Percentiles | None
    requests_per_second: float
    tokens_per_second: float
    audio_seconds_per_second: float
    cached_share: float | None = None
    client_cpu: float | None = None
    kinds: dict[Output, LevelReport] | None = None
    baseline: Comparison | None = None


class BenchReport(Struct, kw_only=True):
    """The results of all loads of a run. `capacity` is the result of the search for the gapless capacity. After a
    search, `levels` contains the levels of the search.
    """

    bench_version: str
    url: str
    model: str
    started: str
    seed: int
    scenario: Scenario
    levels: list[LevelReport]
    capacity: Capacity | None = None


class Throughput(Struct, frozen=True):
    """Three rates: the number of complete answers per second, the number of text tokens of these answers per second,
    and the seconds of sound per second.
    """

    requests: float
    tokens: float
    audio_seconds: float


def summarise(scenario: Scenario, load: Load, timelines: Sequence[RequestTimes], seconds: float) -> LevelReport:
    """The results of one load. `seconds` is the time during which requests were in progress."""
    done = [timeline for timeline in timelines if timeline.failure is None]
    spoken = [timeline for timeline in done if timeline.sounds]
    silences = [_underruns(timeline) for timeline in spoken]
    prompts = [one.prompt for one in done if one.prompt is not None]
    prompted = sum(one.total for one in prompts)
    return LevelReport(
        load=load,
        requests=len(timelines),
        completed=len(done),
        errors=_errors(timelines),
        wrong_length=sum(not right_length(scenario, one.tokens, one.audio_seconds) for one in done),
        seconds=seconds,
        ttft=percentiles_of(one.first_text for one in done if one.first_text is not None),
        ttfa=percentiles_of(one.first_audio for one in done if one.first_audio is not None),
        e2e=percentiles_of(one.ended for one in done),
        inter_token=percentiles_of(gap for one in done for gap in _gaps(one.texts)),
        inter_chunk=percentiles_of(gap for one in spoken for gap in _gaps([sound.at for sound in one.sounds])),
        rtf=percentiles_of(one.real_time_factor for one in spoken if one.real_time_factor is not None),
        continuous=sum(not silence for silence in silences) / len(spoken) if spoken else None,
        underruns=percentiles_of(itertools.chain.from_iterable(silences)),
        requests_per_second=len(done) / seconds,
        tokens_per_second=sum(one.text_tokens for one in done) / seconds,
        audio_seconds_per_second=sum(one.audio_seconds for one in done) / seconds,
        cached_share=sum(one.cached for one in prompts) / prompted if prompted else None,
    )


def summarise_mix(
    kinds: Sequence[Scenario], load: Load, timelines: Sequence[RequestTimes], seconds: float
) -> LevelReport:
    """The results of one load with mixed output. `kinds` has the kind of each request."""
    by_kind: dict[Scenario, list[RequestTimes]] = {}
    for kind, timeline in zip(kinds, timelines, strict=True):
        by_kind.setdefault(kind, []).append(timeline)
    reports = {kind.output: summarise(kind, load, found, seconds) for kind, found in by_kind.items()}
    report = summarise(kinds[0], load, timelines, seconds)
    report.wrong_length = sum(one.wrong_length for one in reports.values())
    report.kinds = {output: reports[output] for output in Output if output in reports}
    return report


def throughput(timelines: Iterable[RequestTimes], began: float, ended: float) -> Throughput:
    """The throughput between two times of the clock `time.perf_counter`. Sound counts if it arrives between these
    times, even if its answer is not complete at the second time. An answer and its tokens count if the answer is
    completed between these times.
    """
    answers = tokens = 0
    sound = 0.0
    for one in timelines:
        sound += sum(chunk.seconds for chunk in one.sounds if began <= one.began + chunk.at <= ended)
        if one.failure is None and began <= one.began + one.ended <= ended:
            answers += 1
            tokens += one.text_tokens
    seconds = ended - began
    return Throughput(answers / seconds, tokens / seconds, sound / seconds)


def is_gapless(scenario: Scenario, timeline: RequestTimes) -> bool:
    """Whether a streamed spoken answer is complete, has the requested length, and plays without an audible silence."""
    if timeline.failure is not None or not timeline.sounds:
        return False
    return right_length(scenario, timeline.tokens, timeline.audio_seconds) and not _underruns(timeline)


def right_length(scenario: Scenario, tokens: int | None, audio_seconds: float) -> bool:
    """Whether an answer has the fixed length that was requested. The sound may differ by one frame."""
    if scenario.natural:
        return True
    right_text = tokens is None or tokens == scenario.tokens
    if not scenario.speech or scenario.audio_frames is None:
        return right_text
    return right_text and abs(audio_seconds / FRAME_SECONDS - scenario.audio_frames) <= 1


def compare(scenario: Scenario, rounds: Iterable[Round], sample_rate: int = 24_000) -> Comparison:
    """Compare server and reference over `rounds`."""
    rounds = [one for one in rounds if all(timeline.failure is None for timeline in one.timelines)]
    answers = [answer for one in rounds for answer in one.answers]
    return Comparison(
        rounds=len(rounds),
        reference_seconds=percentiles_of(answer.seconds for answer in answers),
        total_ratio=_median(sum(answer.seconds for answer in one.answers) / one.seconds for one in rounds),
        first_text_ratio=_median(_sooner(one, "first_text") for one in rounds),
        first_audio_ratio=_median(_sooner(one, "first_audio") for one in rounds) if scenario.speech else None,
        reference_wrong_length=sum(
            not right_length(scenario, answer.tokens, answer.audio_samples / sample_rate) for answer in answers
        ),
    )


def _sooner(one: Round, first: str) -> float | None:
    ours: list[Any] = [getattr(timeline, first) for timeline in one.timelines]
    if None in ours:
        return None
    theirs = itertools.accumulate(answer.seconds for answer in one.answers)
    return statistics.median(theirs) / statistics.median(ours)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _gaps(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def _underruns(timeline: RequestTimes) -> list[float]:
    """The length in seconds of each silence that a listener would have noticed."""
    player = Player()
    for sound in timeline.sounds:
        player.feed(sound.at, sound.seconds)
    return player.underruns


def _errors(timelines: Iterable[RequestTimes]) -> dict[str, ErrorCount]:
    errors: dict[str, ErrorCount] = {}
    for timeline in timelines:
        failure = timeline.failure
        if failure is None:
            continue
        if failure.code not in errors:
            errors[failure.code] = ErrorCount(0, failure.message, explanation(failure.param, failure.message))
        errors[failure.code].count += 1
    return errors
