"""Finds where a user's turns begin and end, from the probability of speech in each window of sound.

A time is a number of milliseconds of input sound, counted from the beginning of the session. Every time is a multiple
of the length of a window. The rules are:

- A window is *voiced* if its probability is at least the threshold. A window is *quiet* if its probability is clearly
  lower: below ``threshold - 0.15`` or below half the threshold, whichever limit is higher. Windows between these limits
  do not begin or end a pause.
- Speech has started after 96 ms of voiced windows without a quiet window. So an interruption by the user is noticed 96
  ms after it begins. A click or a knock is shorter than 96 ms.
- A pause is found at a quiet window, and ends at a voiced window. The network needs up to three windows to notice that
  speech has ended. So the pause also includes up to three windows directly before the quiet window. Each of these
  earlier windows must be either not voiced, or *faint*: more than 40 dB below the loudest window of the turn. In a
  noisy room, no window is faint, and turns end a little later.
- After 192 ms, a pause is a candidate for the end of the turn. When the pause has lasted for the required silence, the
  turn has ended. The silence is counted in whole windows, rounded down: 500 ms become 15 windows, which are 480 ms. The
  reason for rounding down is that the window in which the speech ended is partly silent too.
- The sound of a turn ends `TAIL_MS` after the speech of the turn. The length of the silence does not matter. So at a
  candidate, the sound of the whole turn is already known exactly, provided that the user stays silent. An answer to
  this sound can be prepared. The tail is longer than three windows, so the turn contains all sound that the network
  judged as speech.

With ``semantic_vad``, OpenAI judges the words. This server has no model that judges words. Instead, the server judges
how the user speaks:

- The required silence is 400, 600 or 1000 ms with high, medium or low eagerness.
- The required silence is twice as long if less than 400 ms of the turn were voiced so far, as after "um" or "well".
- The required silence is at least 1.5 times the longest pause in this turn after which the user continued to speak. So
  the server waits longer for users who think while they speak.
- The required silence is at most 2, 4 or 8 s with high, medium or low eagerness. OpenAI has the same limits.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TypeAlias

from msgspec import Struct

from gateway.realtime.turns.turn_options import Eagerness, SemanticVad, ServerVad, TurnOptions
from gateway.realtime.turns.voice_pool import WINDOW_MS

LEAST_SPEECH_MS = 96
CANDIDATE_MS = 192
TAIL_MS = 160
"""Length of the silence at the end of a turn's sound, in milliseconds. It is shorter than `CANDIDATE_MS`, so the whole
silence has been received when the pause becomes a candidate.
"""

_HYSTERESIS = 0.15
_FAINT = 0.01  # -40 dB
_MOST_FADING = 3
_FEW_WORDS_MS = 400
_THINKING = 1.5
_LIKE_SERVER_VAD = ServerVad()


class Eager(Struct, frozen=True):
    """The required silence of ``semantic_vad`` in milliseconds: the usual value and the maximum value."""

    usual: int
    longest: int


EAGERNESS: dict[Eagerness, Eager] = {
    "low": Eager(1_000, 8_000),
    "medium": Eager(600, 4_000),
    "high": Eager(400, 2_000),
    "auto": Eager(600, 4_000),
}


class SpeechStarted(Struct, frozen=True):
    """A turn has begun. The sound of the turn begins at `at_ms`. The prefix padding lies between this time and the
    first speech.
    """

    at_ms: int


class PauseCandidate(Struct, frozen=True):
    """The user has paused. If the turn ends with this pause, the sound of the turn ends at `at_ms`."""

    at_ms: int


class SpeechResumed(Struct, frozen=True):
    """The user has continued to speak after a `PauseCandidate`. The speech began again at `at_ms`."""

    at_ms: int


class SpeechStopped(Struct, frozen=True):
    """The turn has ended. The sound of the turn ends at `at_ms`, as in the `PauseCandidate` of the same pause."""

    at_ms: int


class IdleTimeout(Struct, frozen=True):
    """The user has not spoken from `start_ms`, the end of the playback of the last answer, until `at_ms`."""

    start_ms: int
    at_ms: int


TurnEvent: TypeAlias = SpeechStarted | PauseCandidate | SpeechResumed | SpeechStopped | IdleTimeout


class Phase(Enum):
    """The phase of a turn."""

    SILENT = auto()
    RISING = auto()
    """Voiced windows have arrived, but too few to count as speech."""
    SPEAKING = auto()
    PAUSING = auto()


class TurnTracker:
    """Follows the turns of one user.

    Attributes:
        options: The settings. The settings may be replaced at any time, even during a turn.
        phase: The phase of the turn.

    Args:
        options: The settings at the beginning.
        now_ms: The time of the first window.
    """

    def __init__(self, options: TurnOptions, now_ms: int = 0) -> None:
        self.options = options
        self.phase = Phase.SILENT
        self._now = now_ms
        self._free_from = now_ms  # the sound before this time belongs to an earlier turn, or has been discarded
        self._begun = self._paused = now_ms
        self._voiced = self._longest_pause = 0  # total of the voiced windows, and longest pause, of this turn, in ms
        self._loudest = 0.0  # loudness of the loudest voiced window of this turn
        self._fading = 0  # number of the latest windows in a row that were faint or not voiced
        self._is_candidate = False  # the pause has been reported
        self._idle_from: int | None = None

    def hear(self, probability: float, loudness: float) -> list[TurnEvent]:
        """The events of the next window.

        Args:
            probability: Probability that the window is speech.
            loudness: The root mean square of the window's samples. The scale of the samples does not matter, because a
                loudness is only compared with the loudness of other windows.
        """
        settings = self.options if isinstance(self.options, ServerVad) else _LIKE_SERVER_VAD
        threshold = settings.threshold
        began = self._now
        self._now += WINDOW_MS
        if probability >= threshold:
            return self._hear_voice(began, loudness, settings.prefix_padding_ms)
        if probability < max(threshold - _HYSTERESIS, threshold / 2):
            if self.phase is Phase.RISING:
                self.phase = Phase.SILENT
            elif self.phase is Phase.SPEAKING:
                self._paused = began - min(self._fading, _MOST_FADING) * WINDOW_MS
                self.phase, self._is_candidate = Phase.PAUSING, False
        self._fading += 1
        if self.phase is Phase.PAUSING:
            return self._wait_in_pause()
        return self._wait_for_speech(settings.idle_timeout_ms)

    def expect_speech(self, after_ms: int) -> None:
        """Begin to measure the idle time when the last answer has been played. `after_ms` is the number of milliseconds
        from now until the answer has been played.
        """
        self._idle_from = self._now + after_ms

    def expect_nothing(self) -> None:
        """Stop measuring the idle time, because the model answers."""
        self._idle_from = None

    def forget_turn(self, heard_ms: int) -> None:
        """Drop the turn, if there is one. Later turns contain no sound from before `heard_ms`."""
        self.phase = Phase.SILENT
        self._free_from = max(self._free_from, heard_ms)

    def _hear_voice(self, began: int, loudness: float, padding: int) -> list[TurnEvent]:
        events: list[TurnEvent] = []
        match self.phase:
            case Phase.SILENT:
                self.phase, self._begun, self._voiced, self._longest_pause = Phase.RISING, began, 0, 0
                self._loudest = 0.0
            case Phase.PAUSING:
                self.phase = Phase.SPEAKING
                self._longest_pause = max(self._longest_pause, began - self._paused)
                if self._is_candidate:
                    events.append(SpeechResumed(began))
        self._voiced += WINDOW_MS
        self._fading = self._fading + 1 if loudness < _FAINT * self._loudest else 0
        self._loudest = max(self._loudest, loudness)
        if self.phase is Phase.RISING and self._voiced >= LEAST_SPEECH_MS:
            self.phase = Phase.SPEAKING
            self._idle_from = None
            events.append(SpeechStarted(max(self._begun - padding, self._free_from)))
        return events

    def _wait_in_pause(self) -> list[TurnEvent]:
        silence = self._now - self._paused
        end = self._paused + min(TAIL_MS, silence)
        if silence > self._required_silence() - WINDOW_MS:
            self.phase, self._free_from = Phase.SILENT, end
            return [SpeechStopped(end)]
        if silence >= CANDIDATE_MS and not self._is_candidate:
            self._is_candidate = True
            return [PauseCandidate(end)]
        return []

    def _required_silence(self) -> int:
        if isinstance(self.options, SemanticVad):
            eager = EAGERNESS[self.options.eagerness]
            usual = eager.usual * (2 if self._voiced < _FEW_WORDS_MS else 1)
            return min(max(usual, int(_THINKING * self._longest_pause)), eager.longest)
        return self.options.silence_duration_ms

    def _wait_for_speech(self, timeout: int | None) -> list[TurnEvent]:
        if self.phase is not Phase.SILENT or self._idle_from is None or timeout is None:
            return []
        if self._now < self._idle_from + timeout:
            return []
        start, self._idle_from = self._idle_from, None
        return [IdleTimeout(start, self._now)]
