"""Answers that are prepared while the user pauses, before it is certain that the turn has ended.

An answer is prepared for the sound that has been received at the pause. If the turn ends with this pause, this sound is
the whole turn. So the prepared answer is correct, and is sent at once. If the user continues to speak, the prepared
answer is discarded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.answers.exchange import Exchanges
from gateway.metrics import Metrics
from gateway.realtime.responses.response import Response
from omni_pipeline.config.schema import Limits


class Speculation:
    """One prepared answer.

    Args:
        response: The answer, which may be incomplete.
        sound: The sound of the turn that the response answers.
    """

    def __init__(self, response: Response, sound: bytes) -> None:
        self.response = response
        self.sound = sound


class Speculations:
    """The prepared answers of all sessions. Only a few answers are prepared at the same time. No preparation begins
    while the server is crowded (see `Exchanges.crowded`). So prepared answers do not delay other answers.

    Args:
        exchanges: Admits requests.
    """

    def __init__(self, exchanges: Exchanges) -> None:
        self._exchanges = exchanges
        self._limits: Limits = exchanges.limits
        self._metrics: Metrics = exchanges.metrics
        self._open = 0

    @property
    def possible(self) -> bool:
        """Whether one more answer may be prepared now."""
        return self._open < self._limits.realtime_speculations and not self._exchanges.crowded

    @contextmanager
    def place(self) -> Iterator[None]:
        """Count one piece of work that is done early, until the ``with`` block ends."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def begin(self, response: Response, sound: bytes) -> Speculation:
        """Count an answer that is being prepared for a turn with this sound."""
        self._open += 1
        return Speculation(response, sound)

    def end(self, speculation: Speculation, *, kept: bool) -> None:
        """Keep a prepared answer, or discard it."""
        self._open -= 1
        self._metrics.realtime_speculations.labels("kept" if kept else "dropped").inc()
        if not kept:
            speculation.response.cancel("turn_detected")
