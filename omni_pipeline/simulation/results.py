"""The results of a simulation."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

AUDIBLE_SECONDS = 0.1
"""A silence of more than this number of seconds is a gap, as in the gateway's simulated player."""


class Answer:
    """One request and what its client has received.

    Attributes:
        sent_at: Time at which the client sent the request.
        streams: The stages whose streams have not ended.
        text_at, sound_at: Arrival of the first text and of the first sound.
        ended_at: Arrival of the last part.
        tokens, sound: Text tokens and seconds of sound so far.
        gaps: Number of audible silences between two parts of the sound.
    """

    def __init__(self, sent_at: float, streams: set[str]) -> None:
        self.sent_at = sent_at
        self.streams = streams
        self.text_at: float | None = None
        self.sound_at: float | None = None
        self.ended_at: float | None = None
        self.tokens = 0
        self.sound = 0.0
        self.gaps = 0
        self._plays_until = 0.0

    def write(self, now: float, tokens: int) -> None:
        """Note that text has arrived."""
        self.text_at = now if self.text_at is None else self.text_at
        self.tokens += tokens

    def speak(self, now: float, seconds: float) -> None:
        """Note that a piece of sound has arrived."""
        if self.sound_at is None:
            self.sound_at = self._plays_until = now
        silence = max(now - self._plays_until, 0.0)
        self.gaps += silence > AUDIBLE_SECONDS
        self._plays_until += silence + seconds
        self.sound += seconds


class Latency(Struct, frozen=True):
    """Mean and percentiles of a latency in seconds; None if nothing was measured."""

    mean: float | None
    p50: float | None
    p90: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Latency:
        ordered = sorted(values)
        mean = sum(ordered) / len(ordered) if ordered else None
        return cls(mean, _percentile(ordered, 0.5), _percentile(ordered, 0.9))


class Use(Struct, frozen=True):
    """How busy a stage or a GPU was.

    Attributes:
        name: The stage with the number of its replica, or the GPU.
        busy: Fraction of the time in which a step ran.
        batch: Mean number of items in a step; None for a GPU, and for a stage without steps.
        where: For a stage with GPUs: the GPUs. For a stage without GPUs: the host. For a GPU: the stages that run on
            the GPU.
    """

    name: str
    busy: float
    batch: float | None = None
    where: str = ""


class Prediction(Struct, frozen=True):
    """What a simulation predicts.

    Attributes:
        seconds: Length of the measured time.
        answers: Number of measured answers that are complete.
        answers_per_second: Answers completed in the measured time, per second.
        audio_seconds_per_second: Seconds of sound that arrived in the measured time, per second.
        ttft: Time to the first text.
        ttfa: Time to the first sound.
        e2e: Time to the end of the answer.
        gapless: Fraction of the measured spoken answers that play without a gap; None if there are no spoken answers.
        stages, gpus: How busy stages and GPUs were, from the beginning of the simulation to its end.
        bottleneck: The GPU that was busy for the longest time. Without GPUs, the stage with the longest busy time.
        unanswered: Number of requests that were in progress at the end.
        backlog: Growth of the number of open requests in the measured time, divided by the number of requests that were
            sent in this time.
        host_bytes_per_second: Bytes per second between hosts, by the names of the hosts.
    """

    seconds: float
    answers: int
    answers_per_second: float
    audio_seconds_per_second: float
    ttft: Latency
    ttfa: Latency
    e2e: Latency
    gapless: float | None
    stages: tuple[Use, ...]
    gpus: tuple[Use, ...]
    bottleneck: Use | None
    unanswered: int
    backlog: float
    host_bytes_per_second: dict[str, float]


def _percentile(ordered: Sequence[float], share: float) -> float | None:
    """The percentile of sorted values at `share` (0 to 1). If the percentile lies between two values, it is
    interpolated.
    """
    if not ordered:
        return None
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
