"""Defines the results of conversations, and computes them from the times of their turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from gateway.bench.percentiles import Percentiles, percentiles_of
from gateway.bench.report import ErrorCount
from gateway.bench.talk.turns import Interruption, TurnTimes


class TalkLevel(Struct, kw_only=True):
    """The results with one number of sessions. Times are in seconds.

    Attributes:
        sessions: Number of sessions at the same time.
        turns, answered: Number of turns that were spoken, and number of turns without an error.
        split: Number of turns that the server divided into several turns.
        continuous: Fraction of the answers that play without an audible silence.
        errors: The failed turns, grouped by error code.
        stopped: Time from the last voiced sample to ``speech_stopped``.
        first_audio: Time from the last voiced sample to the first sound of the answer.
        after_stop: Time from ``speech_stopped`` to the first sound of the answer.
        noticed: Time from the first voiced sample of an interruption to ``speech_started``.
        last_sound, ended: Time from the first voiced sample of an interruption to the last sound of the old answer, and
            to the ``response.done`` of the old answer. Answers that were complete before the interruption do not count.
        interruptions: Number of interruptions.
        cached_share: Fraction of the prompts' tokens that came from the prefix cache; None if the server does not
            report cached tokens.
        client_cpu: CPU time of the bench itself, divided by the elapsed time.
    """

    sessions: int
    turns: int
    answered: int
    split: int
    continuous: float | None
    errors: dict[str, ErrorCount]
    stopped: Percentiles | None
    first_audio: Percentiles | None
    after_stop: Percentiles | None
    interruptions: int
    noticed: Percentiles | None
    last_sound: Percentiles | None
    ended: Percentiles | None
    cached_share: float | None
    client_cpu: float


class TalkReport(Struct, kw_only=True):
    """The results of a run."""

    bench_version: str
    url: str
    model: str
    started: str
    seed: int
    silence_ms: int
    speed: float
    interrupted_share: float
    levels: list[TalkLevel]


def summarise_talk(sessions: int, turns: Sequence[TurnTimes], client_cpu: float) -> TalkLevel:
    """The results of `turns`. `sessions` is the number of sessions that were open at the same time."""
    answered = [turn for turn in turns if turn.failure is None]
    errors: dict[str, ErrorCount] = {}
    for turn in turns:
        if turn.failure is not None:
            errors.setdefault(turn.failure.code, ErrorCount(0, turn.failure.message)).count += 1
    interruptions = [turn.interruption for turn in answered if turn.interruption is not None]

    def over(measured: Callable[[Interruption], float | None]) -> Percentiles | None:
        return percentiles_of(value for one in interruptions if (value := measured(one)) is not None)

    tokens = sum(turn.input_tokens or 0 for turn in answered if turn.cached_tokens is not None)
    return TalkLevel(
        sessions=sessions,
        turns=len(turns),
        answered=len(answered),
        split=sum(turn.is_split for turn in turns),
        continuous=sum(turn.is_continuous for turn in answered) / len(answered) if answered else None,
        errors=errors,
        stopped=percentiles_of(turn.stopped for turn in answered if turn.stopped is not None),
        first_audio=percentiles_of(turn.first_audio for turn in answered if turn.first_audio is not None),
        after_stop=percentiles_of(
            turn.first_audio - turn.stopped
            for turn in answered
            if turn.first_audio is not None and turn.stopped is not None
        ),
        interruptions=len(interruptions),
        noticed=over(lambda one: one.noticed),
        last_sound=over(lambda one: one.last_sound),
        ended=over(lambda one: one.ended),
        cached_share=sum(turn.cached_tokens or 0 for turn in answered) / tokens if tokens else None,
        client_cpu=client_cpu,
    )
