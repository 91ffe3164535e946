"""Finds the turns of a user in a stream of sound."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TYPE_CHECKING

from gateway.realtime.sounds.sound_formats import HEARD_RATE
from gateway.realtime.turns.turn_detection import Phase, TurnEvent, TurnTracker
from gateway.realtime.turns.turn_options import TurnOptions
from gateway.realtime.turns.voice_pool import WINDOW, VoicePool

if TYPE_CHECKING:
    import numpy

MOST_WINDOWS = 32
"""Largest number of windows in one job. After each job, the jobs of other sessions can run."""

_SAMPLES_PER_MS = HEARD_RATE // 1_000


class TurnDetector:
    """Reports the turns of one session. The events do not depend on how the sound is divided into chunks.

    `turn_detection` explains the rules for turns.

    Args:
        options: The settings.
        pool: Lends a model to this session, and runs the model.
        heard: Number of samples of the session before the first sample that `feed` gets. The times of events are
            measured from the session's first sample.
    """

    def __init__(self, options: TurnOptions, pool: VoicePool, *, heard: int = 0) -> None:
        self._pool = pool
        self._voice = pool.borrow()
        self._job: Future[list[float]] | None = None
        now_ms = -(-heard // _SAMPLES_PER_MS)
        self._tracker = TurnTracker(options, now_ms)
        self._to_skip = now_ms * _SAMPLES_PER_MS - heard  # so that windows begin at whole milliseconds
        self._heard = heard
        self._rest: numpy.ndarray | None = None  # the beginning of a window: float32 [n]

    @property
    def is_speaking(self) -> bool:
        """Whether a turn has begun and not ended."""
        return self._tracker.phase in (Phase.SPEAKING, Phase.PAUSING)

    async def feed(self, samples: numpy.ndarray) -> list[TurnEvent]:
        """Process more sound. Returns the events in this sound, in order.

        Await each call before the next call of any method. After a cancelled call, only `close` may be called.

        Args:
            samples: float32 [n] at 16 kHz, in [-1, 1].
        """
        events: list[TurnEvent] = []
        windows = self._take(samples)
        for first in range(0, len(windows), MOST_WINDOWS):
            judged = windows[first : first + MOST_WINDOWS]
            self._job = self._pool.probabilities(self._voice, judged)
            probabilities = await asyncio.wrap_future(self._job)
            for probability, loudness in zip(probabilities, _loudness(judged), strict=True):
                events += self._tracker.hear(probability, loudness)
        return events

    def change(self, options: TurnOptions) -> None:
        """Use other settings from now on, even for a turn that has begun."""
        self._tracker.options = options

    def expect_speech(self, after_ms: int) -> None:
        """Begin to measure the idle time when the last answer has been played. `after_ms` is the number of milliseconds
        from now until the answer has been played.
        """
        self._tracker.expect_speech(after_ms)

    def expect_nothing(self) -> None:
        """Stop measuring the idle time, because the model answers."""
        self._tracker.expect_nothing()

    def reset(self) -> None:
        """Drop the turn and forget the sound so far. Later turns begin after this sound. Times are still measured from
        the session's first sample.
        """
        self._tracker.forget_turn(-(-self._heard // _SAMPLES_PER_MS))
        self._voice.forget()

    def close(self) -> None:
        """Give the model back as soon as no job uses it. No method may be called afterwards."""
        pool, voice = self._pool, self._voice
        if self._job is None or self._job.done():
            pool.give_back(voice)
        else:
            self._job.add_done_callback(lambda _: pool.give_back(voice))

    def _take(self, samples: numpy.ndarray) -> numpy.ndarray:
        """The windows that are complete now: float32 [n, `WINDOW`]."""
        import numpy

        self._heard += len(samples)
        skipped = min(self._to_skip, len(samples))
        self._to_skip -= skipped
        pending = [samples[skipped:]] if self._rest is None else [self._rest, samples[skipped:]]
        joined = numpy.concatenate(pending).astype(numpy.float32, copy=False)
        whole = len(joined) - len(joined) % WINDOW
        self._rest = joined[whole:].copy()
        return joined[:whole].reshape(-1, WINDOW)


def _loudness(windows: numpy.ndarray) -> list[float]:
    """The root mean square of each window in `windows` ([n, `WINDOW`])."""
    import numpy

    return [float(value) for value in numpy.sqrt((windows**2).mean(axis=1))]
