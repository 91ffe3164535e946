"""Handles the user's sound in one session: the buffer, and the turns that the voice detection finds in the sound."""

from __future__ import annotations

from typing import Protocol

from gateway.realtime.items.conversation import new_id
from gateway.realtime.items.kept_bytes import KeptBytes
from gateway.realtime.protocol.session import Session
from gateway.realtime.sounds.input_buffer import InputBuffer
from gateway.realtime.sounds.sound_formats import HEARD_RATE
from gateway.realtime.turns.turn_detection import (
    IdleTimeout,
    PauseCandidate,
    SpeechResumed,
    SpeechStarted,
    SpeechStopped,
    TurnEvent,
)
from gateway.realtime.turns.turn_listener import TurnDetector
from gateway.realtime.turns.voice_pool import VoicePool
from omni_pipeline.errors import bad_request

LEAST_COMMIT_MS = 100
"""Shortest sound that a client may commit, in milliseconds."""

# The audio tower divides a sound into windows and computes each window separately. In the released models, this number
# of samples is one window or a multiple of a window.
_WINDOW_SAMPLES = 8 * HEARD_RATE
# The features of a window also depend on the next `_AFTER_WINDOW` samples after the window. An analysis window is 25 ms
# long, and a hop is 10 ms long. Half of an analysis window is 2.5 ms longer than a hop, and 2.5 ms are 40 samples.
_AFTER_WINDOW = 40

# Length of the latest sound that is kept while nobody speaks. The voice detection reports the beginning of speech with
# a delay. So the kept sound must contain the longest prefix padding, and the speech that arrives during this delay.
_KEPT_MS = 6_000
# Largest number of bytes in the buffer for one byte of the client's sound. G.711 has 8 bits at 8 kHz; the buffer has
# 16 bits at 16 kHz.
_GROWTH = 4


class TurnActs(Protocol):
    """Methods that are called at the events of a turn. `sound` is the sound of the turn: 16 bits at `HEARD_RATE`."""

    def begin_turn(self, item_id: str, at_ms: int) -> None:
        """The user has begun to speak."""

    def pause_turn(self, item_id: str, sound: bytes) -> None:
        """The user has paused. If the turn ends with this pause, `sound` is the sound of the whole turn."""

    def resume_turn(self) -> None:
        """The user has continued to speak."""

    def continue_turn(self, sound: bytes) -> None:
        """The user is still speaking. `sound` is the beginning of the turn. It consists of complete windows of the
        audio tower.
        """

    def end_turn(self, item_id: str, sound: bytes, at_ms: int) -> None:
        """The turn has ended."""

    def break_silence(self, item_id: str, sound: bytes, timeout: IdleTimeout) -> None:
        """The user has not spoken for the idle time."""


class Hearing:
    """The incoming sound of one session.

    Args:
        session: The settings at the beginning.
        voices: Finds speech in sound.
        kept: Counts the bytes of the buffer.
        acts: Called at the events of turns.
    """

    def __init__(self, session: Session, voices: VoicePool, kept: KeptBytes, acts: TurnActs) -> None:
        self._format = session.input_format
        self._voices = voices
        self._kept = kept
        self._acts = acts
        self._buffer = InputBuffer(session.input_format)
        self._detector: TurnDetector | None = None
        self._turn: tuple[str, int] | None = None  # id of the item for the current turn, and the turn's beginning in ms
        self._windows = 0  # number of complete windows of this turn that have been reported
        self._follow_settings(session)

    @property
    def in_turn(self) -> bool:
        """Whether the user is speaking."""
        return self._turn is not None

    async def change(self, session: Session) -> None:
        """Use other settings from now on."""
        if session.input_format != self._format:
            self._format = session.input_format
            size = self._buffer.nbytes
            rest = self._buffer.change_format(session.input_format)
            self._kept.hold(self._buffer.nbytes - size)
            if self._detector is not None:
                self._act(await self._detector.feed(rest))
        self._follow_settings(session)

    def _follow_settings(self, session: Session) -> None:
        options = session.turn_detection
        if options is None:
            self.close()
            self._detector = self._turn = None
        elif self._detector is None:
            self._detector = TurnDetector(options, self._voices, heard=self._buffer.samples)
        else:
            self._detector.change(options)

    async def append(self, data: bytes) -> None:
        """Add more sound, in the client's format. Raises OmniError if the session would keep too many bytes."""
        bound = _GROWTH * len(data)
        self._kept.hold(bound)
        size = self._buffer.nbytes
        samples = self._buffer.append(data)
        self._kept.release(bound - (self._buffer.nbytes - size))
        if self._detector is not None:
            self._act(await self._detector.feed(samples))
            if self._turn is None:
                self._forget_before(self._buffer.now_ms - _KEPT_MS)
        self._report_windows()

    async def commit(self) -> tuple[str, bytes]:
        """Take all sound in the buffer. Returns the id of the item for this sound, and the sound.

        Raises:
            OmniError: 400 if there is less than `LEAST_COMMIT_MS` of sound.
        """
        size = self._buffer.nbytes
        rest = self._buffer.append_rest()
        self._kept.hold(self._buffer.nbytes - size)
        if self._detector is not None:
            self._act(await self._detector.feed(rest))
        if self._buffer.kept_ms < LEAST_COMMIT_MS:
            raise bad_request(
                f"The input audio buffer has {self._buffer.kept_ms:.0f} ms of sound. "
                f"A commit needs at least {LEAST_COMMIT_MS} ms.",
                code="input_audio_buffer_commit_empty",
            )
        item_id = self._turn[0] if self._turn is not None else new_id("item")
        sound = self._take(None, None)
        self._forget_turn()
        return item_id, sound

    def clear(self) -> None:
        """Forget the sound in the buffer, and the turn."""
        self._take(None, None)
        self._forget_turn()

    def expect_speech(self, after_ms: int) -> None:
        """Begin to measure the idle time when the answer has been played. `after_ms` is the number of milliseconds from
        now until the answer has been played.
        """
        if self._detector is not None:
            self._detector.expect_speech(after_ms)

    def expect_nothing(self) -> None:
        """Stop measuring the idle time, because the model answers."""
        if self._detector is not None:
            self._detector.expect_nothing()

    def close(self) -> None:
        """Return the voice detection to the pool."""
        if self._detector is not None:
            self._detector.close()
            self._detector = None

    def _act(self, turns: list[TurnEvent]) -> None:
        for turn in turns:
            match turn:
                case SpeechStarted():
                    self._turn = (new_id("item"), turn.at_ms)
                    self._windows = 0
                    self._forget_before(turn.at_ms)
                    self._acts.begin_turn(*self._turn)
                case PauseCandidate() if self._turn is not None:
                    item_id, begin = self._turn
                    self._acts.pause_turn(item_id, self._buffer.between(begin, turn.at_ms))
                case SpeechResumed():
                    self._acts.resume_turn()
                case SpeechStopped() if self._turn is not None:
                    (item_id, begin), self._turn = self._turn, None
                    self._acts.end_turn(item_id, self._take(begin, turn.at_ms), turn.at_ms)
                case IdleTimeout():
                    sound = self._take(turn.start_ms, turn.at_ms)
                    self._acts.break_silence(new_id("item"), sound, turn)

    def _report_windows(self) -> None:
        """Report the windows that have become complete. Without voice detection, all sound in the buffer is one
        item.
        """
        if self._turn is None and self._detector is not None:
            return
        begin = None if self._turn is None else self._turn[1]
        windows = (self._buffer.samples_since(begin) - _AFTER_WINDOW) // _WINDOW_SAMPLES
        if windows > self._windows:
            self._windows = windows
            self._acts.continue_turn(self._buffer.first(windows * _WINDOW_SAMPLES + _AFTER_WINDOW, begin))

    def _take(self, begin_ms: int | None, end_ms: int | None) -> bytes:
        size = self._buffer.nbytes
        sound = self._buffer.take(begin_ms, end_ms)
        self._kept.release(size - self._buffer.nbytes)
        return sound

    def _forget_turn(self) -> None:
        self._turn = None
        self._windows = 0
        if self._detector is not None:
            self._detector.reset()

    def _forget_before(self, ms: int) -> None:
        size = self._buffer.nbytes
        self._buffer.forget_before(ms)
        self._kept.release(size - self._buffer.nbytes)
